//! Netlink messages as bytes: writing requests with nested attributes, reading replies.
//!
//! Knows the framing only, not the meaning of any attribute.

/// Ask for an acknowledgement (linux/netlink.h).
pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_DUMP_INTR: u16 = 0x10;
pub(crate) const NLM_F_EXCL: u16 = 0x200;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
pub(crate) const NLMSG_ERROR: u16 = 2;
pub(crate) const NLMSG_DONE: u16 = 3;

const NLA_F_NESTED: u16 = 0x8000;
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER: usize = 16;
const ATTR_HEADER: usize = 4;

fn align(len: usize) -> usize {
    len.next_multiple_of(4)
}

/// One or more requests that go to the kernel in one `sendto`.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    pub(super) bytes: Vec<u8>,
    /// Sequence number of each message, and whether it is acknowledged.
    pub(super) expected: Vec<bool>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Appends a message: `fixed` is the family's own header, `body` writes the attributes.
    pub(crate) fn push(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        body: impl FnOnce(&mut Attrs<'_>),
    ) {
        let start = self.bytes.len();
        let sequence = u32::try_from(self.expected.len() + 1).unwrap_or(u32::MAX);
        let flags = flags | NLM_F_REQUEST;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        self.bytes.resize(align(self.bytes.len()), 0);
        body(&mut Attrs {
            bytes: &mut self.bytes,
        });
        let len = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
        self.expected.push(flags & NLM_F_ACK != 0);
    }
}

/// Writer of attributes.
pub(crate) struct Attrs<'a> {
    bytes: &'a mut Vec<u8>,
}

impl Attrs<'_> {
    /// An attribute with these bytes as its value.
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value);
        self.close(start);
    }

    /// A number in the machine's byte order, as rtnetlink has it.
    pub(crate) fn u32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_ne_bytes());
    }

    /// A number in network byte order, as nftables has it.
    pub(crate) fn be32(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    /// A string with its terminating zero.
    pub(crate) fn str(&mut self, kind: u16, value: &str) {
        let start = self.open(kind);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
        self.close(start);
    }

    /// An attribute that holds attributes.
    pub(crate) fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Attrs<'_>)) {
        let start = self.open(kind | NLA_F_NESTED);
        body(&mut Attrs { bytes: self.bytes });
        self.close(start);
    }

    /// Bytes that belong to no attribute: the fixed header inside `VETH_INFO_PEER`.
    pub(crate) fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    fn open(&mut self, kind: u16) -> usize {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        start
    }

    fn close(&mut self, start: usize) {
        let len = u16::try_from(self.bytes.len() - start).unwrap_or(u16::MAX);
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.bytes.resize(align(self.bytes.len()), 0);
    }
}

/// One message of a reply.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    /// Everything after the netlink header.
    pub(crate) body: &'a [u8],
}

/// The messages of a received datagram. Stops at the first one that is cut off.
pub(crate) fn replies(mut bytes: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
        if len < HEADER || len > bytes.len() {
            return None;
        }
        let reply = Reply {
            kind: u16_at(bytes, 4)?,
            flags: u16_at(bytes, 6)?,
            sequence: u32_at(bytes, 8)?,
            body: &bytes[HEADER..len],
        };
        bytes = bytes.get(align(len)..).unwrap_or_default();
        Some(reply)
    })
}

/// The attributes in `bytes`. Stops at the first one that is cut off.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        if len < ATTR_HEADER || len > bytes.len() {
            return None;
        }
        let attribute = (u16_at(bytes, 2)? & NLA_TYPE_MASK, &bytes[ATTR_HEADER..len]);
        bytes = bytes.get(align(len)..).unwrap_or_default();
        Some(attribute)
    })
}

/// The first attribute of this kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes)
        .find(|(k, _)| *k == kind)
        .map(|(_, value)| value)
}

/// A number in the machine's byte order at an offset.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(offset..offset + 4)?.try_into().ok()?,
    ))
}

fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(
        bytes.get(offset..offset + 2)?.try_into().ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut batch = Batch::new();
        batch.push(16, NLM_F_ACK, &[7; 16], |a| {
            a.str(3, "eth0");
            a.nest(18, |a| {
                a.u32(1, 0x0102_0304);
                a.bytes(2, &[9]);
            });
        });
        batch.push(17, 0, &[], |a| a.be32(1, 5));
        assert_eq!(batch.expected, [true, false]);
        assert_eq!(batch.bytes.len() % 4, 0);
        let all: Vec<_> = replies(&batch.bytes).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].kind, all[0].sequence), (16, 1));
        let attrs = &all[0].body[16..];
        assert_eq!(attribute(attrs, 3), Some(&b"eth0\0"[..]));
        let nested = attribute(attrs, 18).unwrap();
        assert_eq!(u32_at(attribute(nested, 1).unwrap(), 0), Some(0x0102_0304));
        assert_eq!(attribute(nested, 2), Some(&[9][..]));
        assert_eq!(attribute(all[1].body, 1), Some(&[0, 0, 0, 5][..]));
    }

    #[test]
    fn cut_off_or_lying_lengths_end_the_reading() {
        let mut batch = Batch::new();
        batch.push(16, 0, &[], |a| a.u32(1, 1));
        let whole = batch.bytes.clone();
        for len in 0..whole.len() {
            assert_eq!(replies(&whole[..len]).count(), 0);
        }
        let mut lying = whole;
        lying[0] = 3;
        assert_eq!(replies(&lying).count(), 0);
        assert_eq!(attributes(&[2, 0, 1, 0, 0, 0]).count(), 0);
        assert_eq!(attributes(&[200, 0, 1, 0]).count(), 0);
    }
}

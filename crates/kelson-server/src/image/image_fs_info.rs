//! `ImageFsInfo`: what images and writable layers take. Both are on one file system and say so.

use kelson_cri::v1;

use crate::Server;
use crate::runtime::now;

impl Server {
    pub(super) async fn filesystems(&self) -> v1::ImageFsInfoResponse {
        let images = self.services.images.usage();
        let ids: Vec<_> = self
            .snapshot()
            .containers()
            .map(|(_, one)| one.id)
            .collect();
        let stats = self.services.pods.container_stats(&ids).await;
        let (mut bytes, mut inodes) = (0, 0);
        for writable in stats.iter().filter_map(|one| one.writable.as_ref()) {
            bytes += writable.usage.bytes;
            inodes += writable.usage.inodes;
        }
        v1::ImageFsInfoResponse {
            image_filesystems: vec![self.usage(images.bytes, images.inodes)],
            container_filesystems: vec![self.usage(bytes, inodes)],
        }
    }

    fn usage(&self, bytes: u64, inodes: u64) -> v1::FilesystemUsage {
        let mountpoint = self.services.about.root.display().to_string();
        v1::FilesystemUsage {
            timestamp: now(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint }),
            used_bytes: Some(v1::UInt64Value { value: bytes }),
            inodes_used: Some(v1::UInt64Value { value: inodes }),
        }
    }
}

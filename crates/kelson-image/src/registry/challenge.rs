//! `WWW-Authenticate`: what a registry wants to see before it answers (RFC 9110, section 11.6.1).

use http::HeaderMap;
use http::header::WWW_AUTHENTICATE;

/// Most bytes of challenges that are looked at.
const MAX_BYTES: usize = 16 << 10;

/// A way to authenticate that this client knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

/// All challenges of a response that are understood, in their order. A response may have several
/// headers, and a header several challenges.
pub(crate) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let mut budget = MAX_BYTES;
    let mut found = Vec::new();
    for value in headers.get_all(WWW_AUTHENTICATE) {
        let Ok(text) = value.to_str() else { continue };
        let Some(left) = budget.checked_sub(text.len()) else {
            break;
        };
        budget = left;
        parse(text, &mut found);
    }
    found
}

fn parse(text: &str, found: &mut Vec<Challenge>) {
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while let Some((scheme, after)) = token(rest) {
        rest = after.trim_start();
        let mut parameters = Vec::new();
        // A parameter is `name = value`; a word without `=` starts the next challenge.
        while let Some((name, value, after)) = parameter(rest) {
            parameters.push((name.to_ascii_lowercase(), value));
            rest = after.trim_start_matches([' ', '\t', ',']);
        }
        let mut take = |wanted: &str| {
            let at = parameters.iter().position(|(name, _)| name == wanted)?;
            Some(parameters.swap_remove(at).1).filter(|value| !value.is_empty())
        };
        if scheme.eq_ignore_ascii_case("basic") {
            found.push(Challenge::Basic);
        } else if scheme.eq_ignore_ascii_case("bearer")
            && let Some(realm) = take("realm")
        {
            found.push(Challenge::Bearer {
                realm,
                service: take("service"),
                scope: take("scope"),
            });
        }
        let next = rest.trim_start_matches([' ', '\t', ',']);
        if next.len() == rest.len() && token(next).is_none() {
            return;
        }
        rest = next;
    }
}

fn token(text: &str) -> Option<(&str, &str)> {
    let inside = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    let end = text.find(|c: char| !inside(c)).unwrap_or(text.len());
    (end > 0).then(|| text.split_at(end))
}

fn parameter(text: &str) -> Option<(&str, String, &str)> {
    let (name, rest) = token(text)?;
    let rest = rest.trim_start().strip_prefix('=')?.trim_start();
    match rest.strip_prefix('"') {
        None => {
            let end = rest.find([',', ' ', '\t']).unwrap_or(rest.len());
            Some((name, rest[..end].to_owned(), &rest[end..]))
        }
        Some(quoted) => {
            let mut value = String::new();
            let mut characters = quoted.char_indices();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => return Some((name, value, &quoted[at + 1..])),
                    '\\' => value.push(characters.next()?.1),
                    other => value.push(other),
                }
            }
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, value.parse().unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>, scope: Option<&str>) -> Challenge {
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Challenge::Bearer {
            realm: realm.into(),
            service: owned(service),
            scope: owned(scope),
        }
    }

    #[test]
    fn what_registries_send_is_understood() {
        let docker = r#"Bearer realm="https://auth.io/token",service="r.io",scope="repository:a/b:pull,push""#;
        let expected = bearer(
            "https://auth.io/token",
            Some("r.io"),
            Some("repository:a/b:pull,push"),
        );
        assert_eq!(read(&[docker]), std::slice::from_ref(&expected));
        assert_eq!(read(&["Basic realm=\"x\""]), [Challenge::Basic]);
        assert_eq!(read(&["basic"]), [Challenge::Basic]);
        assert_eq!(
            read(&["Negotiate", docker]),
            std::slice::from_ref(&expected)
        );
        assert_eq!(
            read(&["Basic realm=x", docker]),
            [Challenge::Basic, expected.clone()]
        );
        assert_eq!(
            read(&[&format!("Negotiate abc==, Basic realm=\"a, b\", {docker}")]),
            [Challenge::Basic, expected]
        );
        assert_eq!(
            read(&[r#"bearer REALM = "a\"b""#]),
            [bearer("a\"b", None, None)]
        );
        assert_eq!(read(&["Bearer service=\"x\""]), []);
        assert_eq!(read(&["Bearer realm=\"open"]), []);
    }

    proptest! {
        #[test]
        fn nothing_panics_or_hangs(text in "[ -~]{0,200}") {
            let _ = read(&[&text]);
        }
    }
}

//! As much of HTTP/1.1 as the lab's own web server and client need, as pure functions; and the test pattern, a body
//! whose every byte is known.

use std::{
    fs::File,
    io::{self, BufWriter, Write as _},
    path::Path,
    sync::OnceLock,
};

/// A head that has not ended by then is refused.
pub const MAX_HEAD: usize = 16 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HttpError {
    #[error("the head has not ended within {MAX_HEAD} bytes")]
    TooLong,
    #[error("the head is not text")]
    NotText,
    #[error("`{0}` is no HTTP/1 request line or status line")]
    FirstLine(String),
    #[error("`{0}` is no header")]
    Header(String),
}

/// Header fields in the order they came, names in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The first field of this name, which must be given in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn content_length(&self) -> Option<u64> {
        self.get("content-length")?.parse().ok()
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        self.get(name).is_some_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case(token)))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// What follows the question mark, if anything.
    pub query: String,
    pub headers: Headers,
    pub keep_alive: bool,
}

impl Request {
    /// The value of `name=` in the query, if it is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    pub headers: Headers,
    pub keep_alive: bool,
}

/// A request's head at the start of the bytes and its length; `None` while it is incomplete.
pub fn parse_request(bytes: &[u8]) -> Result<Option<(Request, usize)>, HttpError> {
    let Some((first, headers, length)) = split_head(bytes)? else { return Ok(None) };
    let bad = || HttpError::FirstLine(first.to_owned());
    let mut words = first.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    if method.is_empty() || target.is_empty() {
        return Err(bad());
    }
    let keep_alive = keep_alive(version, &headers).ok_or_else(bad)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        keep_alive,
    };
    Ok(Some((request, length)))
}

/// A response's head at the start of the bytes and its length; `None` while it is incomplete.
pub fn parse_response(bytes: &[u8]) -> Result<Option<(ResponseHead, usize)>, HttpError> {
    let Some((first, headers, length)) = split_head(bytes)? else { return Ok(None) };
    let bad = || HttpError::FirstLine(first.to_owned());
    let mut words = first.splitn(3, ' ');
    let keep_alive = words.next().and_then(|version| keep_alive(version, &headers)).ok_or_else(bad)?;
    let status = words.next().filter(|s| s.len() == 3).and_then(|s| s.parse().ok()).ok_or_else(bad)?;
    Ok(Some((ResponseHead { status, headers, keep_alive }, length)))
}

/// RFC 9112 §9.3: 1.1 persists unless told otherwise, 1.0 the other way round. `None` for another version.
fn keep_alive(version: &str, headers: &Headers) -> Option<bool> {
    match version {
        "HTTP/1.1" => Some(!headers.has_token("connection", "close")),
        "HTTP/1.0" => Some(headers.has_token("connection", "keep-alive")),
        _ => None,
    }
}

fn split_head(bytes: &[u8]) -> Result<Option<(&str, Headers, usize)>, HttpError> {
    let window = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let Some(end) = window.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if bytes.len() >= MAX_HEAD { Err(HttpError::TooLong) } else { Ok(None) };
    };
    let text = std::str::from_utf8(&window[..end]).map_err(|_| HttpError::NotText)?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let headers = lines
        .map(|line| match line.split_once(':') {
            // RFC 9112 §5.1: no whitespace between name and colon.
            Some((name, value)) if !name.is_empty() && !name.contains([' ', '\t']) => {
                Ok((name.to_ascii_lowercase(), value.trim().to_owned()))
            }
            _ => Err(HttpError::Header(line.to_owned())),
        })
        .collect::<Result<_, _>>()?;
    Ok(Some((first, Headers(headers), end + 4)))
}

/// A prime, so that the pattern never falls in step with segments, pages or buffers.
const PERIOD: usize = 1_000_003;

fn block() -> &'static [u8] {
    static BLOCK: OnceLock<Vec<u8>> = OnceLock::new();
    BLOCK.get_or_init(|| {
        // splitmix64, by S. Vigna: cheap, and without visible structure.
        let mut state = 0_u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            (mixed ^ mixed >> 31).to_le_bytes()
        })
        .flatten()
        .take(PERIOD)
        .collect()
    })
}

/// The longest piece of the test pattern at hand for an offset; never empty. The pattern repeats after 1,000,003
/// bytes.
pub fn pattern(offset: u64) -> &'static [u8] {
    let at = usize::try_from(offset % PERIOD as u64).unwrap_or_default();
    &block()[at..]
}

/// The offset of the first byte that is not the pattern's, for bytes that begin at `offset`.
pub fn pattern_mismatch(offset: u64, mut bytes: &[u8]) -> Option<u64> {
    let mut at = offset;
    while !bytes.is_empty() {
        let expected = pattern(at);
        let length = expected.len().min(bytes.len());
        let (head, rest) = bytes.split_at(length);
        if head != &expected[..length] {
            let wrong = head.iter().zip(expected).position(|(a, b)| a != b)?;
            return Some(at + wrong as u64);
        }
        at += length as u64;
        bytes = rest;
    }
    None
}

pub(crate) fn write_pattern_file(path: &Path, bytes: u64) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    let mut at = 0;
    while at < bytes {
        let piece = pattern(at);
        let length = usize::try_from(bytes - at).map_or(piece.len(), |left| left.min(piece.len()));
        file.write_all(&piece[..length])?;
        at += length as u64;
    }
    file.flush()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_request(&bytes);
            let _ = parse_response(&bytes);
        }

        #[test]
        fn a_request_is_found_in_any_stream_once_it_is_whole(
            path in "/[a-z/]{0,10}", query in "[a-z]{0,5}", value in "[!-~]{1,10}", body in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let head = format!("GET {path}?{query} HTTP/1.1\r\nX-Value: {value}\r\n\r\n");
            let mut bytes = head.clone().into_bytes();
            for cut in 0..bytes.len() {
                prop_assert_eq!(parse_request(&bytes[..cut]), Ok(None));
            }
            bytes.extend(body);
            let (request, length) = parse_request(&bytes).unwrap().unwrap();
            prop_assert_eq!(length, head.len());
            prop_assert_eq!(request.path, path);
            prop_assert_eq!(request.query, query);
            prop_assert_eq!(request.headers.get("x-value"), Some(value.as_str()));
            prop_assert!(request.keep_alive);
        }

        #[test]
        fn a_response_keeps_its_status_and_headers(status in 100_u16..1000, close in any::<bool>(), length in any::<u64>()) {
            let connection = if close { "Connection: foo, Close\r\n" } else { "" };
            let head = format!("HTTP/1.1 {status} Some Words\r\nContent-Length: {length}\r\n{connection}\r\n");
            let (response, used) = parse_response(head.as_bytes()).unwrap().unwrap();
            prop_assert_eq!((response.status, used), (status, head.len()));
            prop_assert_eq!(response.headers.content_length(), Some(length));
            prop_assert_eq!(response.keep_alive, !close);
        }

        #[test]
        fn one_wrong_byte_is_found_where_it_is(offset in 0_u64..3_000_000, length in 1_usize..3000, at in any::<prop::sample::Index>()) {
            let mut bytes: Vec<u8> = (0..length as u64).map(|i| pattern(offset + i)[0]).collect();
            prop_assert_eq!(pattern_mismatch(offset, &bytes), None);
            let at = at.index(length);
            bytes[at] ^= 1;
            prop_assert_eq!(pattern_mismatch(offset, &bytes), Some(offset + at as u64));
        }
    }

    #[test]
    fn what_is_not_http_is_refused() {
        assert!(parse_request(b"GET / HTTP/2\r\n\r\n").is_err());
        assert!(parse_request(b"GET /\r\n\r\n").is_err());
        assert!(parse_request(b"GET / HTTP/1.1\r\nno colon\r\n\r\n").is_err());
        assert!(parse_response(b"HTTP/1.1 2000 OK\r\n\r\n").is_err());
        assert_eq!(parse_response(&[b'x'; MAX_HEAD]), Err(HttpError::TooLong));
    }

    #[test]
    fn numbers_are_read_from_the_query() {
        let (request, _) = parse_request(b"GET /big?a=1&bytes=200 HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert_eq!(request.number("bytes"), Some(200));
        assert_eq!(request.number("byte"), None);
        assert!(!request.keep_alive);
    }
}

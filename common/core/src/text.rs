//! Bytes as text that others agreed on: hexadecimal, and escapes with `%`.

use std::borrow::Cow;
use std::fmt::Write as _;

use percent_encoding::{AsciiSet, CONTROLS, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

/// What no part of a URL means anything by stays (RFC 3986, section 2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What ends a line or the target of a request.
const BLANK: &AsciiSet = &CONTROLS.add(b' ');

/// What a header of CloudEvents' binding to HTTP escapes.
const ATTRIBUTE: &AsciiSet = &BLANK.add(b'"').add(b'%');

/// Two digits in lower case a byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes everything");
        text
    })
}

/// Everything escaped but letters, digits and `-._~`: one value of a query, or one segment of a path.
#[must_use]
pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, RESERVED).to_string()
}

/// Blanks, control characters and all that is not ASCII escaped, so that it fits into a request line or a header. Escapes stay as they are.
#[must_use]
pub fn escape_blank(url: &str) -> Cow<'_, str> {
    utf8_percent_encode(url, BLANK).into()
}

/// As CloudEvents has the value of an attribute in a header: the same, and quotes and `%` too.
#[must_use]
pub fn escape_attribute(value: &str) -> String {
    utf8_percent_encode(value, ATTRIBUTE).to_string()
}

/// Escapes resolved; what is none stays. The bytes may be no UTF-8.
#[must_use]
pub fn unescape(text: &str) -> Cow<'_, [u8]> {
    percent_decode_str(text).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_escapes_what_its_place_cannot_hold() {
        let all = "aZ09-._~ /?&=+%\"\u{7f}\n\u{20ac}";
        assert_eq!(escape(all), "aZ09-._~%20%2F%3F%26%3D%2B%25%22%7F%0A%E2%82%AC");
        assert_eq!(escape_blank(all), "aZ09-._~%20/?&=+%\"%7F%0A%E2%82%AC");
        assert_eq!(escape_attribute(all), "aZ09-._~%20/?&=+%25%22%7F%0A%E2%82%AC");
        assert_eq!(*unescape(&escape(all)), *all.as_bytes());
        assert!(matches!(escape_blank("/a?b=%20"), Cow::Borrowed("/a?b=%20")));
        assert_eq!(hex(&[0, 0x1f, 0xff]), "001fff");
    }

    #[test]
    fn what_is_no_escape_stays() {
        for (text, meant) in [
            ("", ""),
            ("%", "%"),
            ("%4", "%4"),
            ("%4g%41", "%4gA"),
            ("100%", "100%"),
            ("%%41", "%A"),
            ("%+1", "%+1"),
        ] {
            assert_eq!(*unescape(text), *meant.as_bytes(), "{text}");
        }
        assert_eq!(*unescape("%ff"), [0xff]);
    }
}

//! JSON text without a tree: where a value ends, its members, its strings. Answers come in pieces and may be megabytes, of which
//! the platform wants three members; requests are laid into messages as they pass. Both need the grammar, not the values: a library would
//! want the whole text in one place, and make values of all of it.

mod read;
mod scan;
mod write;

pub use self::read::{Member, elements, is_null, members, text, unescape, whole};
pub use self::scan::{Scanner, is_space};
pub use self::write::{Inlay, Lines, Utf8, compact, escape, string};

/// Deepest nesting; what follows is refused, not followed.
pub const MAX_DEPTH: u32 = 128;

/// Why a text is not JSON, and where, as far as that is one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    why: &'static str,
    /// Bytes before it, and what stands there.
    place: Option<(usize, String)>,
}

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Some((at, near)) = &self.place else { return f.write_str(self.why) };
        write!(f, "{}, at byte {at}: {near}", self.why)
    }
}

impl From<&'static str> for Malformed {
    fn from(why: &'static str) -> Self {
        Self { why, place: None }
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use bytes::BytesMut;
    use proptest::prelude::*;
    use serde_json::Value;

    fn scan(text: &[u8]) -> Option<usize> {
        let mut scanner = Scanner::default();
        let used = scanner.scan(text, |_| {}).ok()?;
        scanner.finish().then_some(used)
    }

    #[test]
    fn the_grammar_is_jsons() {
        for good in [
            "{}",
            "[]",
            "null",
            "true",
            "false",
            "0",
            "-0.5e+3",
            "12E-1",
            r#""""#,
            r#"" \u00e9\"""#,
            r#"{"a":[1,{"b":null}],"c":"d"}"#,
            " [ 1 , 2 ] ",
        ] {
            assert!(scan(good.as_bytes()).is_some(), "{good}");
            let value: Value = serde_json::from_str(good).unwrap();
            let compacted = compact(good.as_bytes()).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&compacted).unwrap(), value, "{good}");
        }
        for bad in [
            "",
            " ",
            "nul",
            "nulL",
            "01",
            "-",
            "1.",
            "1e",
            "+1",
            ".5",
            "{",
            "[1",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{a:1}",
            "{\"a\":1,}",
            "[1}",
            "{\"a\":1]",
            "\"\n\"",
            "\"\\x\"",
            "\"\\u12g4\"",
            "'a'",
            "[1 2]",
        ] {
            assert!(compact(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(scan(b"{}x"), Some(2));
        assert_eq!(scan(b"12 "), Some(2));
        assert!(compact(b"1 2").is_err());
        let deep = |n: usize| [vec![b'['; n], vec![b']'; n]].concat();
        assert!(compact(&deep(MAX_DEPTH as usize)).is_ok());
        assert!(compact(&deep(MAX_DEPTH as usize + 1)).is_err());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (pieces, says) in [
            (&["{'body':1}"][..], "a key is not a string, at byte 1: \"'body':1}\""),
            (&["{\"n\":", "NaN}"], "a value starts with what starts none, at byte 5: \"NaN}\""),
            (&["{\"a\":\"b\"", "\n[1"], "a comma or a closing bracket is missing, at byte 9: \"[1\""),
            (&["{}", " x"], "more follows the value, at byte 3: \"x\""),
            (&["[1"], "it ends early"),
            (&["\"\\u00", "g\""], "a string has a \\u without four digits, at byte 5: \"g\\\"\""),
        ] {
            let (mut inlay, mut out) = (Inlay::new(""), BytesMut::new());
            let pushed = pieces.iter().try_for_each(|piece| inlay.push(piece.as_bytes(), &mut out));
            let said = pushed.and_then(|()| inlay.finish().map(|_| ())).unwrap_err();
            assert_eq!(said.to_string(), says);
        }
    }

    #[test]
    fn strings_mean_what_go_says() {
        for (raw, meant) in [
            (r#""a\/b\n\t\"\\""#, "a/b\n\t\"\\"),
            (r#""\u00e9\ud83d\ude00!""#, "é😀!"),
            (r#""\ud83d!""#, "\u{fffd}!"),
            (r#""\ud83d\u0041\ude00""#, "\u{fffd}A\u{fffd}"),
            (r#""\ud83d\ud83d\ude00""#, "\u{fffd}😀"),
        ] {
            assert_eq!(text(raw.as_bytes()).as_deref(), Some(meant), "{raw}");
        }
        assert_eq!(text(b"12"), None);
        for (raw, number) in [
            ("7", Some(7)),
            ("200.0", Some(200)),
            ("2e2", Some(200)),
            ("1.5", None),
            ("\"7\"", None),
            ("1e300", None),
        ] {
            assert_eq!(whole(raw.as_bytes()), number, "{raw}");
        }
    }

    #[test]
    fn utf8_is_checked_across_pieces() {
        let whole = "aé€😀".as_bytes();
        for cut in 0..=whole.len() {
            for second in cut..=whole.len() {
                let mut utf8 = Utf8::default();
                assert!(
                    utf8.push(&whole[..cut]) && utf8.push(&whole[cut..second]) && utf8.push(&whole[second..])
                );
                assert!(utf8.is_whole());
            }
        }
        let mut cut = Utf8::default();
        assert!(cut.push(b"\xf0\x9f") && !cut.is_whole() && !cut.push(b"a"));
        assert!(!Utf8::default().push(b"\xff"));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<i32>().prop_map(|n| Value::from(f64::from(n) / 8.0)),
            ".{0,12}".prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
                prop::collection::vec((".{0,6}", inner), 0..6)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn members_are_those_of_a_tree(tree in tree(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_vec_pretty(&tree) } else { serde_json::to_vec(&tree) }.unwrap();
            prop_assert_eq!(scan(&text), Some(text.len()));
            prop_assert_eq!(compact(&text).unwrap(), serde_json::to_vec(&tree).unwrap());
            if let Value::Object(map) = &tree {
                let mut seen = serde_json::Map::new();
                for member in members(&text).unwrap() {
                    prop_assert_eq!(&text[member.at..member.at + member.value.len()], member.value);
                    seen.insert(member.key().into_owned(), serde_json::from_slice(member.value).unwrap());
                }
                prop_assert_eq!(&seen, map);
            }
            if let Value::Array(items) = &tree {
                let seen: Vec<Value> = elements(&text).unwrap().map(|raw| serde_json::from_slice(raw).unwrap()).collect();
                prop_assert_eq!(&seen, items);
            }
        }

        #[test]
        fn it_accepts_what_serde_accepts(text in r#"[\[\]{}:,"\\a01.eE+\- nulltruefalse]{0,14}"#) {
            let ours = compact(text.as_bytes()).is_ok();
            let theirs = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            prop_assert_eq!(ours, theirs, "{}", text);
        }

        #[test]
        fn strings_come_back(meant in any::<String>()) {
            let mut out = BytesMut::new();
            string(meant.as_bytes(), &mut out);
            let back = text(&out).map(Cow::into_owned);
            prop_assert_eq!(back.as_deref(), Some(meant.as_str()));
            prop_assert_eq!(serde_json::from_slice::<String>(&out).unwrap(), meant);
        }
    }
}

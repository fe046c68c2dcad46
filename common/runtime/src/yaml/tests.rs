use super::*;

/// What is wrong with a file whose keys are `a`, `b` and `list`.
fn mistakes(text: &str) -> Vec<String> {
    let path = Path::new("f.yaml");
    let mut reader = Reader::new(path);
    if let Some(document) = reader.document(text, "write one") {
        let fields = reader.fields("the file", &document, &["a", "b", "list"]);
        for key in ["a", "b"] {
            reader.maybe(&fields, key, |_| Ok(()));
        }
        if let Some(node) = fields.get("list") {
            reader.list("`list`", node, "[x]");
        }
    }
    reader.finish().iter().map(ToString::to_string).collect()
}

#[test]
fn every_mistake_has_its_place_and_what_would_be_right() {
    let deep: String = (0..100).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    for (text, expected) in [
        ("a: 1\nb: x\nlist: []", &[][..]),
        ("", &["f.yaml:1:1: the file must be a mapping like `a: …`, not nothing"]),
        ("a: 1\n---\na: 2", &["f.yaml:3:1: is a second document: write one"]),
        // Not only the first of them, and what else is wrong as well.
        (
            "a: 1\na: 2\n\"b\": 1\nb: 2\ncolour: red\nlist: {x: 1, x: 2}",
            &[
                "f.yaml:2:1: `a` stands here twice, first in line 1: write it once",
                "f.yaml:4:1: `b` stands here twice, first in line 3: write it once",
                "f.yaml:5:1: `colour` is not a key of the file: it has a, b, list",
                "f.yaml:6:7: `list` must be a list like [x], not a mapping",
                "f.yaml:6:14: `x` stands here twice, first in line 6: write it once",
            ],
        ),
        ("lsit: []", &["f.yaml:1:1: `lsit` is not a key of the file: did you mean `list`?"]),
        ("? [a, b]\n: c", &["f.yaml:1:3: a key of the file must be one value, not a list"]),
        (
            "<<: {a: 1}",
            &[
                "f.yaml:1:1: merge keys (`<<`) are not taken: write the keys out, or give a whole value a name, like `env: &shared`, and use it again, like `env: *shared`",
            ],
        ),
        (
            "a: ~\nb: !mine 5",
            &["f.yaml:1:4: `a` has no value", "f.yaml:2:4: `b` must be one value, not a value with a tag"],
        ),
        ("list: &l [x]\na: *l", &["f.yaml:2:4: `a` must be one value, not a list"]),
        ("a: *nobody", &["f.yaml:1:4: is not YAML: while parsing node, found unknown anchor"]),
        (
            "list:\n\t- x",
            &["f.yaml:2:2: is not YAML: tabs disallowed within this context (block indentation)"],
        ),
        (&*deep, &["f.yaml:65:65: is not YAML: more than 64 mappings and lists inside each other"]),
    ] {
        assert_eq!(mistakes(text), expected, "{text}");
    }
}

/// Each alias is a copy of what it stands for: a few lines could be more than there is memory.
#[test]
fn aliases_of_aliases_are_bounded() {
    let mut text = "a: &n0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
    for n in 1..10 {
        text += &format!("k{n}: &n{n} [{}]\n", vec![format!("*n{}", n - 1); 9].join(","));
    }
    let told = mistakes(&text);
    assert!(told.len() == 1 && told[0].contains("alias expansion exceeded"), "{told:?}");
}

/// YAML reads these as numbers, times and truths, and an alias stands for what its anchor is written as.
#[test]
fn values_stay_as_they_are_written() {
    for ends in ["\n", "\r\n"] {
        let text =
            ["a: &v 1.10 # one", "b: 0x1F", "c: *v", "d: é", "e: {in: &w {x: 1e3}}", "f: *w", ""].join(ends);
        let path = Path::new("f.yaml");
        let mut reader = Reader::new(path);
        let document = reader.document(&text, "").unwrap();
        let fields = reader.fields("the file", &document, &["a", "b", "c", "d", "e", "f"]);
        let told: Vec<_> = ["a", "b", "c", "d"].map(|key| reader.written(fields[key])).to_vec();
        assert_eq!(told, ["1.10", "0x1F", "1.10", "é"]);
        assert_eq!(reader.pairs("`f`", fields["f"]), [("x".to_owned(), "1e3".to_owned())]);
        assert_eq!(reader.finish(), []);
    }
}

#[test]
fn what_is_no_text_is_not_read() {
    let path = Path::new("f.yaml");
    let told = |bytes: &[u8]| load_from(path, bytes).map_err(|mistake| mistake.to_string());
    assert_eq!(told(b"\xef\xbb\xbfa: 1").unwrap(), "a: 1");
    assert_eq!(
        told(b"a: 1\nb: caf\xe9").unwrap_err(),
        "f.yaml:2:7: is not UTF-8 from here on: save it as UTF-8"
    );
    assert_eq!(told(b"\xff\xfea\0").unwrap_err(), "f.yaml:1:1: is not UTF-8 from here on: save it as UTF-8");
    let endless = load_from(path, io::repeat(b' ')).unwrap_err();
    assert_eq!(endless.to_string(), "f.yaml: is longer than 16 MiB, the most that is read");
    let told = load(Path::new("/nowhere/at/all")).unwrap_err().to_string();
    assert!(told.starts_with("/nowhere/at/all: cannot be read: No such file"), "{told}");
}

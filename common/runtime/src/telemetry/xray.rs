//! The trace header of AWS, `Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1`: the same three things as a
//! `traceparent`, in other words.

use stoker_core::TraceContext;

/// What such a header says, as a `traceparent`; nothing where it names no trace, or no span that could be above ours. Who leaves the decision to
/// others (`Sampled=?`) has not decided against it.
#[must_use]
pub fn from_xray(header: &str) -> Option<TraceContext> {
    let (mut root, mut parent, mut sampled) = (None, None, "01");
    for (name, value) in header.split(';').filter_map(|field| field.trim().split_once('=')) {
        match name {
            "Root" => root = root_of(value),
            "Parent" => parent = Some(value).filter(|value| is_hex(value, 16)),
            "Sampled" if value == "0" => sampled = "00",
            _ => {}
        }
    }
    let (root, parent) = (root?, parent?);
    Some(TraceContext { parent: format!("00-{root}-{parent}-{sampled}"), state: String::new() })
}

/// What a function of AWS is told of its trace: where `said` is what the caller said in that header, and is of the same trace, with what else it says;
/// where it is of another, as it came.
#[must_use]
pub fn to_xray(trace: &TraceContext, said: Option<&str>) -> String {
    let mut parts = trace.parent.split('-').skip(1);
    let own = match (parts.next(), parts.next(), parts.next()) {
        (Some(id), Some(parent), Some(flags)) if is_hex(id, 32) && is_hex(parent, 16) => {
            Some((id, parent, u8::from(flags.ends_with('1'))))
        }
        _ => None,
    };
    let Some((id, parent, sampled)) = own else { return said.unwrap_or_default().to_owned() };
    let mut text = format!("Root=1-{}-{};Parent={parent};Sampled={sampled}", &id[..8], &id[8..]);
    let Some(said) = said else { return text };
    let mut same = false;
    for field in said.split(';').map(str::trim) {
        match field.split_once('=') {
            Some(("Root", root)) => same = root_of(root).as_deref() == Some(id),
            Some(("Parent" | "Sampled", _)) | None => {}
            Some(_) => {
                text.push(';');
                text.push_str(field);
            }
        }
    }
    if same { text } else { said.to_owned() }
}

/// `1-<8 hex>-<24 hex>` as one number.
fn root_of(text: &str) -> Option<String> {
    let (time, rest) = text.strip_prefix("1-")?.split_once('-')?;
    (is_hex(time, 8) && is_hex(rest, 24)).then(|| format!("{time}{rest}"))
}

/// So many digits, as a `traceparent` has them.
fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

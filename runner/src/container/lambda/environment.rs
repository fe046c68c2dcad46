//! What a function finds about itself.

use std::path::Path;

use stoker_core::function::FunctionSpec;

use super::ACCOUNT;

/// What a function that says nothing of it is told it runs in.
const REGION: &str = "us-east-1";

/// Where programs are, those of layers too.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/bin";

/// The version that a function is: a number for callers that asked for one, or for an alias.
pub fn version(spec: &FunctionSpec) -> String {
    match spec.format_options.version {
        0 => "$LATEST".to_owned(),
        number => number.to_string(),
    }
}

/// The ARN under which a function knows itself where its caller named none.
pub fn arn(spec: &FunctionSpec) -> String {
    let region = spec.env.get("AWS_REGION").map_or(REGION, String::as_str);
    let qualifier = match spec.format_options.version {
        0 => String::new(),
        number => format!(":{number}"),
    };
    format!("arn:aws:lambda:{region}:{ACCOUNT}:function:{}{qualifier}", spec.name.function())
}

/// Names and values.
type Variables = Vec<(String, String)>;

/// What a runtime finds in its environment, besides what the function's author put there: those of the first list give way to that,
/// those of the second do not.
pub fn environment(spec: &FunctionSpec, workdir: &Path, instance: &str) -> (Variables, Variables) {
    let name = spec.name.function();
    let own = |all: Vec<(&str, String)>| all.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Vec<_>>();
    let root = workdir.to_string_lossy().into_owned();
    let mut gives_way = own(vec![
        ("AWS_REGION", REGION.to_owned()),
        ("AWS_DEFAULT_REGION", REGION.to_owned()),
        ("AWS_XRAY_CONTEXT_MISSING", "LOG_ERROR".to_owned()),
        ("LANG", "en_US.UTF-8".to_owned()),
        ("TZ", ":UTC".to_owned()),
        ("LAMBDA_TASK_ROOT", root.clone()),
        ("LAMBDA_RUNTIME_DIR", "/var/runtime".to_owned()),
        ("_HANDLER", spec.format_options.handler.clone()),
        ("PATH", PATH.to_owned()),
    ]);
    if !spec.root.is_image() {
        // An image says where its own libraries are.
        let libraries = format!("{root}:{root}/lib:/opt/lib");
        gives_way.push(("LD_LIBRARY_PATH".to_owned(), libraries));
    }
    let mut stays = own(vec![
        ("AWS_LAMBDA_FUNCTION_NAME", name.to_owned()),
        ("AWS_LAMBDA_FUNCTION_VERSION", version(spec)),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", (spec.memory >> 20).to_string()),
        ("AWS_LAMBDA_LOG_GROUP_NAME", format!("/aws/lambda/{name}")),
        ("AWS_LAMBDA_LOG_STREAM_NAME", instance.to_owned()),
    ]);
    if spec.concurrency > 1 {
        stays.push(("AWS_LAMBDA_MAX_CONCURRENCY".to_owned(), spec.concurrency.to_string()));
    }
    (gives_way, stays)
}

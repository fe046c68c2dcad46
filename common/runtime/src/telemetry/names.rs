//! Every name that spans, events and log records carry, with its meaning. They are of types of their own, so that nothing else can be
//! sent: what stands here is what `docs/telemetry.md` lists (a test compares the two) and what dashboards may ask for.
//!
//! Names are those of OpenTelemetry's semantic conventions where there is one; what has none begins with `stoker.`.

/// The name of a fact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attribute(&'static str);

/// The name of something that happens at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event(&'static str);

/// The name of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name(&'static str);

/// A name, for those who list them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Described {
    pub name: &'static str,
    /// Where it is found: of a span its service and kind; of others the spans that may have it.
    pub on: &'static str,
    /// A sentence.
    pub meaning: &'static str,
}

impl Attribute {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl Event {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl Name {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.0
    }

    /// For tests: what is sent is listed here.
    #[cfg(test)]
    pub(super) const fn of(name: &'static str) -> Self {
        Self(name)
    }
}

impl Attribute {
    /// For tests: what is sent is listed here.
    #[cfg(test)]
    pub(super) const fn of(name: &'static str) -> Self {
        Self(name)
    }
}

impl Event {
    /// For tests: what is sent is listed here.
    #[cfg(test)]
    pub(super) const fn of(name: &'static str) -> Self {
        Self(name)
    }
}

/// Constants, and the list of them.
macro_rules! names {
    ($kind:ident, $(#[$doc:meta])* $list:ident: $($constant:ident = $name:literal, $on:literal, $meaning:literal;)*) => {
        $(#[doc = $meaning] pub const $constant: $kind = $kind($name);)*
        $(#[$doc])*
        pub static $list: &[Described] = &[$(Described { name: $name, on: $on, meaning: $meaning }),*];
    };
}

names! { Name,
    /// All spans, but for those of the HTTP doors: see [`ROUTES`].
    SPANS:
    INVOKE = "stoker.v1.CallService/Invoke", "stoker-lb SERVER", "A call by `Invoke`.";
    INVOKE_STREAM = "stoker.v1.CallService/InvokeStream", "stoker-lb SERVER", "A call by `InvokeStream`.";
    SESSION = "stoker.v1.CallService/Session", "stoker-lb SERVER", "One call of a `Session`, not the session.";
    SUBMIT = "stoker.v1.CallService/Submit", "stoker-lb SERVER", "A call for later is taken in.";
    GET_CALL = "stoker.v1.CallService/GetCall", "stoker-lb SERVER", "Somebody asks for a call for later.";
    WAIT_CALL = "stoker.v1.CallService/WaitCall", "stoker-lb SERVER", "Somebody waits for the end of one.";
    CANCEL_CALL = "stoker.v1.CallService/CancelCall", "stoker-lb SERVER", "Somebody cancels one.";
    REDRIVE_CALL = "stoker.v1.CallService/RedriveCall", "stoker-lb SERVER", "Somebody has one made again that was given up.";
    LIST_CALLS = "stoker.v1.CallService/ListCalls", "stoker-lb SERVER", "Somebody lists them.";
    SEND = "send", "stoker-lb PRODUCER", "A call for later is put into the queue; below the span of the door by which it came.";
    PROCESS = "process", "stoker-lb CONSUMER", "One attempt of a call for later; below its `send`, in the same trace.";
    QUEUE = "queue", "stoker-lb INTERNAL", "The call waits in the balancer for a runner with room.";
    ENGAGE = "stoker.runner.v1.RunnerService/Engage", "stoker-lb CLIENT, stoker-runner SERVER", "One offer of the call to a runner, seen from both sides.";
    WAIT = "wait", "stoker-runner INTERNAL", "The call waits at the runner: for a container, and for the word to start.";
    LAUNCH = "launch", "stoker-runner INTERNAL", "A container is launched: below the `wait` of the call that caused it, a trace of its own where none did.";
    IMAGE = "image", "stoker-runner INTERNAL", "A phase of a launch: the image is fetched, or found.";
    CREATE = "create", "stoker-runner INTERNAL", "A phase of a launch: the sandbox is prepared.";
    START = "start", "stoker-runner INTERNAL", "A phase of a launch: the process is started, until its `exec`.";
    INIT = "init", "stoker-runner INTERNAL", "A phase of a launch: the function makes itself ready.";
    EXECUTION = "execution", "stoker-runner CLIENT", "The function has the call; its context is what the function is told.";
}

names! { Event,
    /// All events.
    EVENTS:
    ACCEPTED = "stoker.accepted", "Engage (stoker-lb)", "The runner took the call into its line.";
    FREEZE = "stoker.container.freeze", "Engage (stoker-runner)", "When the container that serves the call had been frozen; before the call, usually.";
    THAW = "stoker.container.thaw", "Engage (stoker-runner)", "The container was thawed for the call.";
    EXCEPTION = "exception", "execution", "How the function failed, in its own words where it had some.";
}

names! { Attribute,
    /// All attributes.
    ATTRIBUTES:
    RPC_SYSTEM = "rpc.system.name", "CallService, Engage", "Always `grpc`.";
    RPC_METHOD = "rpc.method", "CallService, Engage", "The method, fully qualified; of a session's call that of the session.";
    RPC_STATUS = "rpc.response.status_code", "CallService, Engage (stoker-lb)", "gRPC's status by its name, such as `DEADLINE_EXCEEDED`.";
    HTTP_METHOD = "http.request.method", "HTTP", "The method, `_OTHER` where it is none that HTTP knows.";
    HTTP_METHOD_ORIGINAL = "http.request.method_original", "HTTP", "The method as it came, where it is `_OTHER`.";
    HTTP_ROUTE = "http.route", "HTTP", "The door's path, with names in braces for what varies.";
    HTTP_STATUS = "http.response.status_code", "HTTP", "The answer's status.";
    URL_PATH = "url.path", "HTTP", "The path as it came, without its query.";
    URL_SCHEME = "url.scheme", "HTTP", "`https` where the client came by TLS, else `http`.";
    PEER_ADDRESS = "network.peer.address", "HTTP", "From where the client came.";
    PEER_PORT = "network.peer.port", "HTTP", "Its port.";
    PROTOCOL_VERSION = "network.protocol.version", "HTTP", "Of HTTP: `1.1` or `2`.";
    SERVER_ADDRESS = "server.address", "Engage (stoker-lb)", "The host of the runner that is asked.";
    SERVER_PORT = "server.port", "Engage (stoker-lb)", "Its port.";
    ENDUSER = "enduser.id", "CallService, HTTP, process", "Who asks, where callers are known.";
    ERROR_TYPE = "error.type", "any", "The reason of an error, such as `FUNCTION_TIMEOUT`; of an offer also how it was refused, such as `refused_full`.";
    BLAME = "stoker.blame", "any", "Whose fault it is: `caller`, `function` or `platform`.";
    EXCEPTION_TYPE = "exception.type", "event exception", "The error's type in the function's words, else the reason.";
    EXCEPTION_MESSAGE = "exception.message", "event exception", "What it says.";
    EXCEPTION_STACK = "exception.stacktrace", "event exception", "The last lines that the function wrote.";
    FAAS_INVOKED_NAME = "faas.invoked_name", "CallService, HTTP, Engage (stoker-lb), process", "The function that is called, `APP/FN`.";
    FAAS_INVOKED_PROVIDER = "faas.invoked_provider", "Engage (stoker-lb)", "Always `stoker`.";
    FAAS_VERSION = "faas.version", "CallService, HTTP, Engage (stoker-lb), process, execution", "The function's revision; of revisions that are alike an execution names the first.";
    FAAS_INVOCATION = "faas.invocation_id", "CallService, HTTP, send, process, execution, log records", "The call's id.";
    FAAS_NAME = "faas.name", "Engage (stoker-runner), execution, launch, log records", "The function, `APP/FN`.";
    FAAS_TRIGGER = "faas.trigger", "HTTP, process, execution", "`http` for a request to a trigger, `pubsub` for an attempt of a call for later, `timer` for one by the clock, else `other`.";
    FAAS_COLDSTART = "faas.coldstart", "execution", "The call waited for a container of its own to start.";
    COLD_CAUSE = "stoker.cold.cause", "execution", "Why it did: `first`, `busy`, `expired`, `evicted`, `broken`, `once` or `drained`, as in `stoker_runner_cold_starts`.";
    FAAS_INSTANCE = "faas.instance", "execution, launch, log records", "The container.";
    FAAS_MAX_MEMORY = "faas.max_memory", "launch", "The function's memory limit in bytes.";
    CONTAINER_ID = "container.id", "execution, launch, log records", "The container, by the name under which its runner and its sandbox know it.";
    CONTAINER_RUNTIME = "container.runtime.name", "launch", "The sandbox's driver: `native`, `oci`, `docker` or `process`.";
    CONTAINER_IMAGE = "container.image.name", "launch", "The image without its tag, where the function has one.";
    SERVICE_PEER = "service.peer.name", "execution", "The function, so that service graphs draw it as a node.";
    PEER_SERVICE = "peer.service", "execution", "The same by its older name.";
    MESSAGING_SYSTEM = "messaging.system", "send, process", "Always `stoker`.";
    MESSAGING_OPERATION = "messaging.operation.type", "send, process", "`send` or `process`.";
    MESSAGING_OPERATION_NAME = "messaging.operation.name", "send, process", "The same.";
    MESSAGING_DESTINATION = "messaging.destination.name", "send, process", "The function that the call is for.";
    MESSAGING_ID = "messaging.message.id", "send, process", "The call's id.";
    RUNNER = "stoker.runner", "Engage (stoker-lb)", "The runner that is asked.";
    OFFER = "stoker.offer", "Engage (stoker-lb)", "Which of the call's offers this is, from the second on.";
    OFFERS = "stoker.offers", "CallService, HTTP, process", "How many offers the call took, where it was more than one.";
    CHOICE = "stoker.choice", "Engage (stoker-lb)", "Why this runner: `warm`, `line`, `rank`, `young`, `spill`, `turn` or `idle`.";
    HINT_IDLE = "stoker.hint.idle", "Engage (stoker-lb)", "How many idle containers a runner that refused was thought to have.";
    HINT_WAITING = "stoker.hint.waiting", "Engage (stoker-lb)", "How many calls were thought to wait at a runner that refused.";
    HINT_AGE = "stoker.hint.age_ms", "Engage (stoker-lb)", "How old that word was.";
    MOVED = "stoker.moved", "Engage (stoker-lb)", "The call waited there and started elsewhere.";
    EXPECTED_WAIT = "stoker.expected_wait_ms", "event stoker.accepted", "How long the runner expects it to wait.";
    REFUSED = "stoker.refused", "Engage (stoker-runner)", "Why the call was given back untouched.";
    THAW_TIME = "stoker.thaw_us", "event stoker.container.thaw", "How long that took, in microseconds.";
    CAUSE = "stoker.launch.cause", "launch", "`call`, or `ahead` where no call waits for it.";
    ATTEMPT = "stoker.attempt", "process", "Which attempt of the call this is.";
    KEPT = "stoker.kept", "any first span of a process", "It was not sampled, and is here because its call `failed` or was `slow`.";
    LOG_STREAM = "log.iostream", "log records", "Where a function wrote the line: `stdout` or `stderr`.";
    LOG_SOURCE = "stoker.log.source", "log records", "Who wrote it: `function`, `extension`, `platform` (about a call) or `process` (the server's own log).";
    LOG_TARGET = "stoker.log.target", "log records", "The part of the server that wrote the line.";
}

/// What begins the names of a log line's other fields in its record.
pub const LOG_FIELD: &str = "stoker.log.";

/// Methods of HTTP; what is none of them is `HTTP` in names.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// A door's path, and the names of its spans by method.
#[derive(Debug)]
pub struct Route {
    /// With names in braces for what varies.
    pub path: &'static str,
    names: [&'static str; METHODS.len() + 1],
}

macro_rules! route {
    ($path:literal) => {
        Route {
            path: $path,
            names: [
                concat!("GET ", $path),
                concat!("HEAD ", $path),
                concat!("POST ", $path),
                concat!("PUT ", $path),
                concat!("DELETE ", $path),
                concat!("CONNECT ", $path),
                concat!("OPTIONS ", $path),
                concat!("TRACE ", $path),
                concat!("PATCH ", $path),
                concat!("HTTP ", $path),
            ],
        }
    };
}

/// The HTTP doors, by what their paths begin with. Their spans are called by method and route, like `POST /invoke/{function}`.
pub static ROUTES: [(&str, Route); 8] = [
    ("/invoke/", route!("/invoke/{function}")),
    ("/t/", route!("/t/{app}/{source}")),
    ("/ce/", route!("/ce/{app}/{function}")),
    ("/lambda-url/", route!("/lambda-url/{function}")),
    ("/v2/", route!("/v2/{resource}")),
    ("/v1/", route!("/v1/{resource}")),
    ("/invoke", route!("/invoke")),
    // AWS's paths begin with a date.
    ("", route!("/{date}/functions/{function}")),
];

/// Of a path that leads nowhere.
static NOWHERE: [&str; METHODS.len() + 1] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "HTTP"];

/// A request as spans name it.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    pub name: Name,
    /// The method, if it is one that HTTP knows.
    pub method: Option<&'static str>,
    pub route: Option<&'static str>,
}

/// How the span of a request is called.
#[must_use]
pub fn asked(method: &str, path: &str) -> Asked {
    let at = METHODS.iter().position(|known| *known == method);
    let dated = || {
        let date = path.as_bytes().get(..12).unwrap_or_default();
        date.iter().enumerate().all(|(at, byte)| match at {
            0 | 5 | 8 | 11 => *byte == b"/0000-00-00/"[at],
            _ => byte.is_ascii_digit(),
        }) && !date.is_empty()
    };
    let leads = |begin: &str| match begin {
        "" => dated(),
        "/invoke" => path == begin,
        begin => path.len() > begin.len() && path.starts_with(begin),
    };
    let route = ROUTES.iter().find(|(begin, _)| leads(begin)).map(|(_, route)| route);
    let names = route.map_or(&NOWHERE, |route| &route.names);
    Asked {
        name: Name(names[at.unwrap_or(METHODS.len())]),
        method: at.map(|at| METHODS[at]),
        route: route.map(|route| route.path),
    }
}

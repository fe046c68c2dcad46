//! The table of conformance: every behaviour of a function × every format × every sandbox driver, each through a real fleet. The rows
//! are data (`rows.rs`), and `docs/conformance.md` is checked against them.
//!
//! Each cell says what the caller gets, whose fault an error is, whether a retry is safe, whether the function may have seen the call,
//! that the next call is answered, and whether the same process or another did that.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

mod columns;
mod document;
mod rows;
mod run;
mod table;

/// One test for each format on a driver, so that a failure names its cell.
macro_rules! on {
    ($module:ident, $driver:ident: $($name:ident $column:ident),*) => {
        mod $module {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    let test = concat!(stringify!($module), "::", stringify!($name));
                    crate::run::column(crate::columns::Column::$column, crate::columns::Driver::$driver, test).await;
                }
            )*
        }
    };
}

macro_rules! on_every_driver {
    ($($name:ident $column:ident),* $(,)?) => {
        on!(native, Native: $($name $column),*);
        on!(rootless, Rootless: $($name $column),*);
        on!(process, Process: $($name $column),*);
    };
}

on_every_driver!(
    default Default,
    http Http,
    json Json,
    json_base64 JsonBase64,
    json_http JsonHttp,
    json_http_cold JsonHttpCold,
    cloudevent_0_1 Event01,
    cloudevent_1_0 Event10,
    http_stream HttpStream,
    mless Mless,
    lambda Lambda,
);

// A launch by an OCI runtime costs fifty of ours: one format for each way in which calls come.
on!(oci, Oci: default Default, json Json, http_stream HttpStream, lambda Lambda);

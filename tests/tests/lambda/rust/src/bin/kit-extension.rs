//! An extension with AWS's library for Rust: it says what it is told, by events and by telemetry.

use lambda_extension::{
    Error, Extension, LambdaEvent, LambdaTelemetry, LambdaTelemetryRecord, NextEvent, SharedService,
    service_fn,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Error> {
    Extension::new()
        .with_extension_name("outside")
        .with_events_processor(service_fn(event))
        .with_telemetry_processor(SharedService::new(service_fn(telemetry)))
        .run()
        .await
}

async fn event(event: LambdaEvent) -> Result<(), Error> {
    match event.next {
        NextEvent::Invoke(invoke) => eprintln!("kit: INVOKE {}", invoke.request_id),
        NextEvent::Shutdown(shutdown) => eprintln!("kit: SHUTDOWN {}", shutdown.shutdown_reason),
    }
    Ok(())
}

async fn telemetry(events: Vec<LambdaTelemetry>) -> Result<(), Error> {
    for event in events {
        if let LambdaTelemetryRecord::PlatformReport { .. } = event.record {
            eprintln!("kit: telemetry platform.report");
        }
    }
    Ok(())
}

//! Triggers and what pages may do, to and from the wire. What is wrong with them the function's own check says.

use stoker_core::function::{Cors, Trigger};

use crate::v1;

pub fn read(trigger: v1::Trigger) -> Trigger {
    Trigger {
        http: trigger.http,
        methods: trigger.methods,
        hosts: trigger.hosts,
        headers: trigger.headers.into_iter().collect(),
        query: trigger.query.into_iter().collect(),
        cors: trigger.cors.map(read_cors),
    }
}

pub fn write(trigger: &Trigger) -> v1::Trigger {
    v1::Trigger {
        http: trigger.http.clone(),
        methods: trigger.methods.clone(),
        hosts: trigger.hosts.clone(),
        headers: trigger.headers.clone().into_iter().collect(),
        query: trigger.query.clone().into_iter().collect(),
        cors: trigger.cors.as_ref().map(write_cors),
    }
}

pub fn read_cors(cors: v1::Cors) -> Cors {
    let v1::Cors { origins, methods, headers, expose, credentials, max_age } = cors;
    Cors { origins, methods, headers, expose, credentials, max_age }
}

pub fn write_cors(cors: &Cors) -> v1::Cors {
    let Cors { origins, methods, headers, expose, credentials, max_age } = cors.clone();
    v1::Cors { origins, methods, headers, expose, credentials, max_age }
}

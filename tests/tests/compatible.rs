//! What was released stays: no field, value, message or method of a released protocol may go or become another, since peers and clients of
//! that release are there still. `proto/released/` holds each release as descriptors; a number that is not used any more is reserved.

#![expect(clippy::unwrap_used, reason = "tests, though clippy does not see it in their helpers")]

use std::collections::BTreeMap;

use prost::Message as _;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorSet, ServiceDescriptorProto};
use stoker_tests::schema::RELEASED;

/// By full name.
#[derive(Default)]
struct Protocol {
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
    services: BTreeMap<String, ServiceDescriptorProto>,
}

impl Protocol {
    fn of(set: &FileDescriptorSet) -> Self {
        let mut all = Self::default();
        for file in set.file.iter().filter(|file| file.package().starts_with("stoker.")) {
            file.message_type.iter().for_each(|message| all.add(file.package(), message));
            let name = |name: &str| format!("{}.{name}", file.package());
            all.enums.extend(file.enum_type.iter().map(|it| (name(it.name()), it.clone())));
            all.services.extend(file.service.iter().map(|it| (name(it.name()), it.clone())));
        }
        all
    }

    fn add(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        message.nested_type.iter().for_each(|nested| self.add(&name, nested));
        let enums = message.enum_type.iter().map(|it| (format!("{name}.{}", it.name()), it.clone()));
        self.enums.extend(enums);
        self.messages.insert(name, message.clone());
    }
}

/// Everything of `old` that is not in `new` as it was.
fn broken(old: &FileDescriptorSet, new: &FileDescriptorSet) -> Vec<String> {
    let (old, new) = (Protocol::of(old), Protocol::of(new));
    let mut broken = Vec::new();
    for (name, message) in &old.messages {
        match new.messages.get(name) {
            Some(now) => fields(name, message, now, &mut broken),
            None => broken.push(format!("{name} is gone")),
        }
    }
    for (name, values) in &old.enums {
        match new.enums.get(name) {
            Some(now) => numbers(name, values, now, &mut broken),
            None => broken.push(format!("{name} is gone")),
        }
    }
    for (name, service) in &old.services {
        let Some(now) = new.services.get(name) else {
            broken.push(format!("{name} is gone"));
            continue;
        };
        for method in &service.method {
            // Whatever else a method has, it has options; those change nothing on the wire.
            let same = |other: &&prost_types::MethodDescriptorProto| {
                other.name == method.name
                    && other.input_type == method.input_type
                    && other.output_type == method.output_type
                    && other.client_streaming() == method.client_streaming()
                    && other.server_streaming() == method.server_streaming()
            };
            if !now.method.iter().any(|other| same(&other)) {
                broken.push(format!("{name}.{} is gone or another", method.name()));
            }
        }
    }
    broken
}

fn fields(name: &str, old: &DescriptorProto, new: &DescriptorProto, broken: &mut Vec<String>) {
    let choice = |message: &DescriptorProto, index: Option<i32>| -> Option<String> {
        Some(message.oneof_decl[index? as usize].name().to_owned())
    };
    for field in &old.field {
        let number = field.number();
        let Some(now) = new.field.iter().find(|now| now.number() == number) else {
            let reserved =
                new.reserved_range.iter().any(|range| (range.start()..range.end()).contains(&number));
            if !(reserved && new.reserved_name.contains(&field.name().to_owned())) {
                broken.push(format!(
                    "{name}.{} is gone, and its number and name are not reserved",
                    field.name()
                ));
            }
            continue;
        };
        let same = now.name == field.name
            && now.r#type == field.r#type
            && now.type_name == field.type_name
            && now.label == field.label
            && now.proto3_optional() == field.proto3_optional()
            && choice(old, field.oneof_index) == choice(new, now.oneof_index);
        if !same {
            broken.push(format!("{name}.{} has become another: {now:?}", field.name()));
        }
    }
}

fn numbers(name: &str, old: &EnumDescriptorProto, new: &EnumDescriptorProto, broken: &mut Vec<String>) {
    for value in &old.value {
        let number = value.number();
        let stays = new.value.iter().any(|now| now.number() == number && now.name == value.name);
        let reserved = new.reserved_range.iter().any(|range| (range.start()..=range.end()).contains(&number))
            && new.reserved_name.contains(&value.name().to_owned());
        if !(stays || reserved) {
            broken.push(format!("{name}.{} is gone or another", value.name()));
        }
    }
}

/// A change of a file.
type Change<'a> = &'a dyn Fn(&mut prost_types::FileDescriptorProto);

fn released() -> FileDescriptorSet {
    FileDescriptorSet::decode(RELEASED).unwrap()
}

#[test]
fn nothing_that_was_released_is_broken() {
    let now = FileDescriptorSet::decode(stoker_proto::DESCRIPTORS).unwrap();
    assert!(Protocol::of(&released()).messages.len() > 50, "the release is there");
    assert_eq!(broken(&released(), &now), Vec::<String>::new());
}

#[test]
fn every_way_to_break_it_is_seen() {
    let none = Vec::<String>::new();
    assert_eq!(broken(&released(), &released()), none);
    // A change of the file that has `RunnerService`, and what must be said of it.
    let change = |change: Change<'_>| -> Vec<String> {
        let mut now = released();
        let file = now.file.iter_mut().find(|file| file.package() == "stoker.runner.v1").unwrap();
        change(file);
        broken(&released(), &now)
    };
    let message = |file: &mut prost_types::FileDescriptorProto, name: &str| -> usize {
        file.message_type.iter().position(|message| message.name() == name).unwrap()
    };
    let breaks: [(&str, Change<'_>); 8] = [
        ("Hello is gone", &|file| {
            let at = message(file, "Hello");
            file.message_type.remove(at);
        }),
        ("Hello.version is gone", &|file| {
            let at = message(file, "Hello");
            file.message_type[at].field.remove(0);
        }),
        ("Hello.version has become another", &|file| {
            let at = message(file, "Hello");
            file.message_type[at].field[0].set_type(prost_types::field_descriptor_proto::Type::Sint32);
        }),
        ("Hello.balancer has become another", &|file| {
            let at = message(file, "Hello");
            file.message_type[at].field[2].name = Some("lb".to_owned());
        }),
        ("EngageRequest.hello has become another", &|file| {
            let at = message(file, "EngageRequest");
            file.message_type[at].field[0].oneof_index = None;
        }),
        ("CANCEL_REASON_UNSPECIFIED is gone", &|file| {
            let reason = file.enum_type.iter_mut().find(|it| it.name() == "CancelReason").unwrap();
            reason.value.remove(0);
        }),
        ("RunnerService.Engage is gone or another", &|file| {
            file.service[0].method[0].server_streaming = Some(false);
        }),
        ("RunnerService is gone", &|file| drop(file.service.remove(0))),
    ];
    for (said, make) in breaks {
        let broken = change(make);
        assert!(broken.iter().any(|line| line.contains(said)), "{said}: {broken:?}");
    }
    // What is reserved may go, and more may come.
    let reserved = change(&|file| {
        let at = message(file, "Hello");
        let hello = &mut file.message_type[at];
        let field = hello.field.remove(2);
        hello.reserved_name.push(field.name().to_owned());
        let range = prost_types::descriptor_proto::ReservedRange { start: Some(3), end: Some(4) };
        hello.reserved_range.push(range);
        let mut more = hello.field[0].clone();
        (more.name, more.number) = (Some("more".to_owned()), Some(9));
        hello.field.push(more);
    });
    assert_eq!(reserved, none);
}

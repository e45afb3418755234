//! The requests in the README are those that the other side accepts.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "this is a test: what is not there fails it"
)]

use mm_wire::message::supervisor::version_request;

/// The bytes of the literal in the README that starts like this.
fn literal(start: &str) -> Vec<u8> {
    let readme = include_str!("../../../README.md");
    let (_, literal) = readme.split_once(start).unwrap();
    let (literal, _) = literal.split_once('"').unwrap();
    let mut rest = start.strip_prefix("b\"").unwrap().to_owned() + literal;
    let mut bytes = vec![];
    while !rest.is_empty() {
        let (byte, len) = match rest.as_bytes() {
            [b'\\', b'0', ..] => (0, 2),
            [b'\\', b'x', _, _, ..] => (u8::from_str_radix(&rest[2..4], 16).unwrap(), 4),
            [byte, ..] => (*byte, 1),
            [] => unreachable!(),
        };
        bytes.push(byte);
        rest.drain(..len);
    }
    bytes
}

#[test]
fn the_readmes_request_is_a_version_request_with_room_for_the_response() {
    assert_eq!(literal("b\"MSUP"), version_request());
}

//! The cases of RFC 6455, in the order of Autobahn's test suite, sections 1 to 7, as bytes: what a server makes of a
//! client's. Section 6 is not kept: text that is no UTF-8 is taken, as Go's rpcx sends any bytes in text messages.

use std::{
    io::IoSlice,
    task::{Context, Poll, Waker},
};

use super::{WsSocket, frame::apply_mask};
use crate::transport::{Socket, memory};

const FIN: u8 = 0x80;
const MORE: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

/// How it ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum End {
    /// Not yet.
    Open,
    /// The stream is at its end.
    Eof,
    /// The peer has broken the rules.
    Broken,
    /// The peer has closed for a reason of its own.
    Aborted,
}
use End::{Aborted, Broken, Eof, Open};

/// A frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        len @ ..126 => frame.push(0x80 | len as u8),
        len @ ..65_536 => {
            frame.push(0x80 | 126);
            frame.extend((len as u16).to_be_bytes());
        }
        len => {
            frame.push(0x80 | 127);
            frame.extend((len as u64).to_be_bytes());
        }
    }
    let mask = [0xA1, 0x5E, 0, 0x77];
    frame.extend(mask);
    let begin = frame.len();
    frame.extend(payload);
    apply_mask(&mut frame[begin..], mask, 0);
    frame
}

/// A short one as a server sends it.
fn answer(opcode: u8, payload: &[u8]) -> Vec<u8> {
    [&[FIN | opcode, payload.len() as u8], payload].concat()
}

/// A Close with this status.
fn close(status: u16, reason: &[u8]) -> Vec<u8> {
    [&status.to_be_bytes(), reason].concat()
}

struct Case {
    name: &'static str,
    frames: Vec<Vec<u8>>,
    payload: Vec<u8>,
    answers: Vec<Vec<u8>>,
    end: End,
}

fn case(name: &'static str, frames: Vec<Vec<u8>>, payload: &[u8], answers: Vec<Vec<u8>>, end: End) -> Case {
    Case { name, frames, payload: payload.to_vec(), answers, end }
}

/// One that is answered with a Close, after the payload before it.
fn broken(name: &'static str, frames: Vec<Vec<u8>>, payload: &[u8]) -> Case {
    case(name, frames, payload, vec![answer(CLOSE, &close(1002, b""))], Broken)
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();

    // 1: frames of each length, text and binary.
    for len in [0, 125, 126, 127, 128, 65_535, 65_536, 100_000] {
        for opcode in [TEXT, BINARY] {
            let payload = vec![b'*'; len];
            cases.push(case("1.1, 1.2", vec![frame(FIN | opcode, &payload)], &payload, vec![], Open));
        }
    }

    // 2: Pings and Pongs.
    let ping = |payload: &[u8]| frame(FIN | PING, payload);
    let long = [0xFE; 125];
    for payload in [&b""[..], b"Hello", b"\0\xFF\xFE\xFD\xFC\xFB\0\xFF", &long] {
        cases.push(case("2.1 to 2.4", vec![ping(payload)], b"", vec![answer(PONG, payload)], Open));
    }
    cases.push(broken("2.5", vec![ping(&[0xFE; 126])], b""));
    let pong = |payload: &[u8]| frame(FIN | PONG, payload);
    cases.push(case("2.7, 2.8", vec![pong(b""), pong(b"unasked")], b"", vec![], Open));
    cases.push(case("2.9", vec![pong(b"unasked"), ping(b"asked")], b"", vec![answer(PONG, b"asked")], Open));
    let ten: Vec<_> = (0..10).map(|n| vec![n]).collect();
    let (pings, pongs) = (ten.iter().map(|n| ping(n)).collect(), ten.iter().map(|n| answer(PONG, n)).collect());
    cases.push(case("2.10", pings, b"", pongs, Open));

    // 3: bits that mean nothing.
    for (name, bits) in [("3.1", 0x10), ("3.2", 0x20), ("3.3", 0x30), ("3.4", 0x40), ("3.5", 0x50), ("3.6", 0x60)] {
        cases.push(broken(name, vec![frame(FIN | TEXT, b"ok"), frame(FIN | bits | TEXT, b"no")], b"ok"));
        cases.push(broken("3.7", vec![frame(FIN | bits | PING, b"")], b""));
    }

    // 4: opcodes that mean nothing.
    for opcode in [3, 4, 5, 6, 7, 11, 12, 13, 14, 15] {
        cases.push(broken("4.1, 4.2", vec![frame(FIN | TEXT, b"ok"), frame(FIN | opcode, b"")], b"ok"));
    }

    // 5: messages in several frames.
    cases.push(broken("5.1", vec![frame(PING, b"1"), frame(FIN | MORE, b"2")], b""));
    cases.push(broken("5.2", vec![frame(PONG, b"1"), frame(FIN | MORE, b"2")], b""));
    cases.push(case("5.3", vec![frame(TEXT, b"one "), frame(FIN | MORE, b"two")], b"one two", vec![], Open));
    let between = vec![frame(TEXT, b"one "), ping(b"now"), frame(FIN | MORE, b"two")];
    cases.push(case("5.6", between, b"one two", vec![answer(PONG, b"now")], Open));
    cases.push(broken("5.9", vec![frame(FIN | MORE, b"none"), frame(FIN | TEXT, b"ok")], b""));
    cases.push(broken("5.12", vec![frame(MORE, b"none"), frame(FIN | TEXT, b"ok")], b""));
    cases.push(broken("5.15", vec![frame(TEXT, b"1"), frame(FIN | MORE, b"2"), frame(MORE, b"3")], b"12"));
    cases.push(broken("5.18", vec![frame(TEXT, b"1"), frame(FIN | TEXT, b"2")], b"1"));
    let five = vec![
        frame(BINARY, b"1"),
        frame(MORE, b"2"),
        ping(b"a"),
        frame(MORE, b""),
        ping(b"b"),
        frame(FIN | MORE, b"3"),
        frame(FIN | TEXT, b"4"),
    ];
    cases.push(case("5.19", five, b"1234", vec![answer(PONG, b"a"), answer(PONG, b"b")], Open));

    // 6: any bytes are text.
    cases.push(case(
        "6.3",
        vec![frame(FIN | TEXT, b"\xCE\xBA\xED\xA0\x80\xFF")],
        b"\xCE\xBA\xED\xA0\x80\xFF",
        vec![],
        Open,
    ));

    // 7: the end.
    let closing = |payload: &[u8]| frame(FIN | CLOSE, payload);
    cases.push(case("7.1.1", vec![frame(FIN | TEXT, b"last"), closing(&close(1000, b""))], b"last", vec![], Eof));
    cases.push(case("7.1.2", vec![closing(b""), closing(b"")], b"", vec![], Eof));
    cases.push(case("7.1.3", vec![closing(b""), ping(b"late")], b"", vec![], Eof));
    cases.push(case("7.1.4", vec![closing(b""), frame(FIN | TEXT, b"late")], b"", vec![], Eof));
    cases.push(case("7.1.5", vec![frame(TEXT, b"1"), closing(b""), frame(FIN | MORE, b"2")], b"1", vec![], Eof));
    cases.push(case("7.3.1", vec![closing(b"")], b"", vec![], Eof));
    cases.push(broken("7.3.2", vec![closing(b"a")], b""));
    cases.push(case("7.3.3", vec![closing(&close(1000, b""))], b"", vec![], Eof));
    cases.push(case("7.3.4", vec![closing(&close(1000, b"bye"))], b"", vec![], Eof));
    cases.push(case("7.3.5", vec![closing(&close(1000, &[b'*'; 123]))], b"", vec![], Eof));
    cases.push(broken("7.3.6", vec![closing(&close(1000, &[b'*'; 124]))], b""));
    let no_text = vec![closing(&close(1000, b"\xCE\xBA\xED\xA0\x80"))];
    cases.push(case("7.5.1", no_text, b"", vec![answer(CLOSE, &close(1007, b""))], Broken));
    for status in [1000, 1001, 3000, 3999, 4000, 4999] {
        cases.push(case("7.7, to leave", vec![closing(&close(status, b""))], b"", vec![], Eof));
    }
    for status in [1002, 1003, 1007, 1008, 1009, 1010, 1011] {
        cases.push(case("7.7, for a reason", vec![closing(&close(status, b"why"))], b"", vec![], Aborted));
    }
    for status in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
        cases.push(broken("7.9, 7.13", vec![closing(&close(status, b""))], b""));
    }

    // Beside the suite: masks, and lengths.
    cases.push(broken("without a mask", vec![answer(TEXT, b"no")], b""));
    cases.push(broken("a length of 125 in two bytes", vec![vec![FIN | TEXT, 0xFE, 0, 125, 0, 0, 0, 0]], b""));
    let eight = |len: u64| [&[FIN | TEXT, 0xFF][..], &len.to_be_bytes(), &[0; 4]].concat();
    cases.push(broken("a length of 65,535 in eight bytes", vec![eight(65_535)], b""));
    cases.push(broken("a length of 64 bits", vec![eight(1 << 63)], b""));
    cases.push(case("a length of 63 bits", vec![eight((1 << 63) - 1), vec![7; 100]], &[7; 100], vec![], Open));
    cases.push(case("nothing", vec![frame(FIN | BINARY, b""), frame(BINARY, b"")], b"", vec![], Open));
    cases
}

/// What is there to be read at once, and how it goes on.
fn read_all(socket: &impl Socket, buf_bytes: usize) -> (Vec<u8>, Poll<std::io::Result<usize>>) {
    let (mut all, mut buf) = (Vec::new(), vec![0; buf_bytes]);
    loop {
        match socket.poll_read(&mut Context::from_waker(Waker::noop()), &mut buf) {
            Poll::Ready(Ok(len @ 1..)) => all.extend_from_slice(&buf[..len]),
            polled => return (all, polled),
        }
    }
}

#[test]
fn each_case_of_the_rfc_ends_as_it_says() {
    for Case { name, frames, payload, answers, end } in cases() {
        for buf_bytes in [1, 7, 100_000] {
            // Room for any of them.
            let (near, far) = memory::pair(1 << 20);
            let server = WsSocket::server(near);
            let bytes = frames.concat();
            assert_eq!(far.try_write(&[IoSlice::new(&bytes)]).expect("there is room"), bytes.len());

            let (read, polled) = read_all(&server, buf_bytes);
            let ended = match polled {
                Poll::Pending => Open,
                Poll::Ready(Ok(_)) => Eof,
                Poll::Ready(Err(error)) if error.kind() == std::io::ErrorKind::InvalidData => Broken,
                Poll::Ready(Err(_)) => Aborted,
            };
            assert_eq!((ended, read == payload), (end, true), "{name}");
            assert_eq!(read_all(&far, 1000).0, answers.concat(), "{name}");
        }
    }
}

/// A server that is closed answers with the status that it got, or says that it ends.
#[test]
fn the_end_is_answered_with_a_close() {
    let cx = &mut Context::from_waker(Waker::noop());
    for (got, said) in [
        (Some(frame(FIN | CLOSE, &close(1000, b"bye"))), answer(CLOSE, &close(1000, b""))),
        (Some(frame(FIN | CLOSE, &close(4001, b""))), answer(CLOSE, &close(4001, b""))),
        (Some(frame(FIN | CLOSE, b"")), answer(CLOSE, &close(1000, b""))),
        (None, answer(CLOSE, &close(1000, b""))),
    ] {
        let (near, far) = memory::pair(1 << 10);
        let server = WsSocket::server(near);
        if let Some(got) = &got {
            far.try_write(&[IoSlice::new(got)]).expect("there is room");
            assert!(matches!(read_all(&server, 100).1, Poll::Ready(Ok(0))));
        }
        assert!(matches!(server.poll_shutdown(cx), Poll::Ready(Ok(()))));
        assert!(server.try_write(&[IoSlice::new(b"late")]).is_err());
        drop(server);
        assert_eq!(read_all(&far, 100).0, said);
    }
}

/// Also one that was dropped without having been ended tells a browser that it is gone.
#[test]
fn a_dropped_socket_says_that_it_goes() {
    let (near, far) = memory::pair(1 << 10);
    drop(WsSocket::server(near));
    assert_eq!(read_all(&far, 100).0, answer(CLOSE, &close(1001, b"")));
}

/// A Ping in the middle of a frame that goes out is answered behind it; and of a peer that asks and does not read the
/// answers, what waits for it has a bound.
#[test]
fn pongs_wait_for_the_end_of_a_frame_and_have_a_bound() {
    let (near, far) = memory::pair(10);
    let server = WsSocket::server(near);
    assert_eq!(server.try_write(&[IoSlice::new(b"0123456789")]).expect("there is some room"), 8);
    far.try_write(&[IoSlice::new(&frame(FIN | PING, b"hi")[..8])]).expect("there is room");
    assert!(read_all(&server, 100).1.is_pending() && server.has_unsent() && !server.can_rest());

    let mut heard = read_all(&far, 100).0;
    assert_eq!(server.try_write(&[IoSlice::new(b"89")]).expect("there is room"), 2);
    heard.extend(read_all(&far, 100).0);
    assert_eq!(heard, [&b"\x82\x0a0123456789"[..], b"\x8a\x02hi"].concat());
    assert!(!server.has_unsent());

    let (near, far) = memory::pair(1 << 20);
    let server = WsSocket::server(near);
    let fill = vec![0; 1 << 20];
    while server.try_write(&[IoSlice::new(&fill)]).is_ok() {}
    for _ in 0..1000 {
        far.try_write(&[IoSlice::new(&frame(FIN | PING, &[7; 125]))]).expect("it reads");
        assert!(read_all(&server, 1000).1.is_pending());
    }
    let pongs = server.held_bytes();
    assert!((1000..32 << 10).contains(&pongs), "{pongs}");
}

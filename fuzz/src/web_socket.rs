//! The reader and the writer of WebSocket's frames.

use std::{
    io::{self, IoSlice},
    task::{Context, Poll, Waker},
};

use bothways::transport::{
    Socket,
    memory::{self, MemorySocket},
    ws::WsSocket,
};

use crate::within;

/// Room for whatever a short input may be answered with.
const PIPE_BYTES: usize = 1 << 20;

/// The first byte says which end reads, the second how the stream behind it is cut. However it is cut, the same bytes come
/// out, and the same is wrong; what is announced takes no memory. And as what an application sends, it arrives.
pub fn web_socket(bytes: &[u8]) {
    let [end, cut, stream @ ..] = bytes else { return };
    let end = if end & 1 == 0 { WsSocket::server } else { WsSocket::client };
    let cut = 1 + usize::from(*cut);
    let whole = read(end, stream, usize::MAX, 16 << 10);
    assert_eq!(whole, read(end, stream, cut, 16 << 10), "in pieces of {cut}");
    assert_eq!(whole, read(end, stream, usize::MAX, cut), "into pieces of {cut}");

    for room in [cut, PIPE_BYTES] {
        let (near, far) = memory::pair(room);
        arrives(&WsSocket::client(near), &WsSocket::server(far), stream);
        let (near, far) = memory::pair(room);
        arrives(&WsSocket::server(near), &WsSocket::client(far), stream);
    }
}

/// What comes out of a stream that comes in pieces, read into pieces; and how it ends.
fn read(
    end: fn(MemorySocket) -> WsSocket<MemorySocket>,
    stream: &[u8],
    piece: usize,
    buffer: usize,
) -> (Vec<u8>, String) {
    let (near, far) = memory::pair(PIPE_BYTES);
    let (socket, mut payload, mut buffer) = (end(near), Vec::new(), vec![0; buffer]);
    for piece in stream.chunks(piece) {
        assert_eq!(far.try_write(&[IoSlice::new(piece)]).expect("there is room"), piece.len());
        // Some of it waits in the pipe, then as payload, and the answers to Pings on their way back.
        let bytes_max = 16 * (stream.len() + 1024);
        let ended = within(bytes_max, || {
            loop {
                match socket.poll_read(&mut Context::from_waker(Waker::noop()), &mut buffer) {
                    Poll::Ready(Ok(len @ 1..)) => payload.extend_from_slice(&buffer[..len]),
                    Poll::Ready(Ok(0)) => return Some("the end".to_owned()),
                    Poll::Ready(Ok(_)) => unreachable!(),
                    Poll::Ready(Err(error)) => return Some(error.to_string()),
                    Poll::Pending => return None,
                }
            }
        });
        if let Some(ended) = ended {
            return (payload, ended);
        }
    }
    (payload, "open".to_owned())
}

/// What one end writes, the other one reads.
fn arrives(writer: &impl Socket, reader: &impl Socket, stream: &[u8]) {
    let (mut written, mut got, mut buffer) = (0, Vec::new(), vec![0; 4 << 10]);
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100 * (stream.len() + 1) {
        let (head, tail) = stream[written..].split_at(stream[written..].len() / 3);
        match writer.poll_write(&mut cx, &[IoSlice::new(head), IoSlice::new(tail)]) {
            Poll::Ready(written_now) => written += written_now.expect("the other end is there"),
            Poll::Pending => {}
        }
        if let Poll::Ready(Err(error)) = writer.poll_flush(&mut cx) {
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        }
        while let Poll::Ready(len) = reader.poll_read(&mut cx, &mut buffer) {
            got.extend_from_slice(&buffer[..len.expect("the other end keeps the rules")]);
        }
        if got.len() == stream.len() {
            break;
        }
    }
    assert!(got == stream, "{} of {} bytes", got.len(), stream.len());
}

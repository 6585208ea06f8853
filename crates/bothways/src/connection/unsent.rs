//! Oneway requests that had not left when their connection ended: the layer above sends them over the next one.
//!
//! A request has not left if the socket has taken no byte of it. The peer does not have a request of which the socket has
//! taken a part, but its beginning is not kept: it is lost, and counted.

use bothways_proto::{Limits, Message, frame_len, keys};
use bytes::BytesMut;

use super::{Connection, outbox::Rest};

/// What a connection held when it ended. Dropped, when the lock is free, it gives the layer above what is to go again.
pub(super) struct Unsent {
    connection: Connection,
    rest: Option<Rest>,
    /// What had left, and was not taken.
    untaken: usize,
    /// A frame of which a part has left is the framework's own.
    is_own: bool,
}

impl Unsent {
    pub(super) fn new(connection: &Connection, rest: Rest, untaken: usize, is_own: bool) -> Self {
        Self { connection: connection.clone(), rest: Some(rest), untaken, is_own }
    }
}

impl Drop for Unsent {
    /// The caller may hold locks of the layer above.
    fn drop(&mut self) {
        let Some(rest) = self.rest.take() else { return };
        let handler = &self.connection.shared.handler;
        if !handler.sends_again() {
            return;
        }
        let (requests, lost) = oneways(rest, self.connection.limits());
        let lost = if self.is_own { 0 } else { lost };
        if !requests.is_empty() || lost != 0 || self.untaken != 0 {
            handler.handle_unsent(&self.connection, requests, lost, self.untaken);
        }
    }
}

/// The oneway requests among what was left, in order, and how many more there were.
fn oneways(rest: Rest, limits: &Limits) -> (Vec<Message>, usize) {
    let mut requests = Vec::new();
    let mut lost = 0;
    if let Some(wire) = rest.wire {
        let (pieces, is_cut) = wire.into_whole_frames();
        lost += usize::from(is_cut);

        let mut frames = BytesMut::new();
        pieces.for_each(|piece| frames.extend_from_slice(&piece));
        let mut frames = frames.freeze();
        while let Ok(Some(len)) = frame_len(&frames, limits)
            && len <= frames.len()
        {
            requests.extend(Message::parse(frames.split_to(len), limits));
        }
    }

    let pushes = rest.lanes.into_iter().flat_map(|lanes| lanes.into_pushes());
    for (head, body) in pushes {
        let frame = if body.is_empty() { head } else { [head, body].concat().into() };
        match Message::parse(frame, limits) {
            Ok(message) => requests.push(message),
            Err(_) => lost += 1,
        }
    }

    // Calls among them are answered otherwise, and what the framework says is of its connection.
    requests.retain(|message| {
        let header = message.header();
        header.is_oneway() && !header.is_heartbeat() && !message.has_service_path(keys::CONTROL_PATH)
    });
    (requests, lost)
}

#[cfg(test)]
mod tests {
    use bothways_proto::{Header, Metadata, Role, Seq, SerializeType};
    use bytes::Bytes;

    use super::{
        super::{
            lanes::Lane,
            outbox::Outbox,
            settings::Settings,
            wire::{SHARE_BYTES, WIRE_BYTES},
        },
        *,
    };

    fn message(number: u64, is_oneway: bool, len: usize) -> Message {
        let seq = Seq::new(number);
        let header = match is_oneway {
            true => Header::oneway(seq, SerializeType::RAW),
            false => Header::request(seq, SerializeType::RAW),
        };
        Message::new(header, "T", "m", &Metadata::new(), &vec![7; len])
    }

    /// However much the socket has taken: what comes again is each oneway request of which it has taken nothing, whole and
    /// in order, and one more is lost at most. Calls do not come again.
    #[test]
    fn what_has_not_left_is_there_whole() {
        let (limits, settings) = (Limits::default(), Settings::default());
        for len in [1, SHARE_BYTES, WIRE_BYTES + 1] {
            let all: Vec<Message> = (0..9).map(|number| message(number, number % 3 != 1, len)).collect();
            let total: usize = all.iter().map(|message| message.frame().len()).sum();
            let cuts = (0..=total).step_by((total / 500).max(1));
            for taken in cuts.chain([all[0].frame().len(), total]) {
                let mut outbox = Outbox::new(Role::Client);
                for message in &all {
                    let lane = if message.header().is_oneway() { Lane::Push } else { Lane::Call };
                    outbox.add_frame(lane, message.frame(), &settings.bounds()).expect("room");
                }
                let mut left = taken;
                while 0 < left {
                    let mut wire = outbox.take().expect("there is more");
                    let mut written = 0;
                    while !wire.is_empty() && written < left {
                        written += wire.write_with(0, |slices| slices[0].len().min(left - written), |n| *n);
                    }
                    left -= written;
                    outbox.put_back(wire, written);
                }
                let (mut end, mut whole, mut cut) = (0, Vec::new(), 0);
                for message in &all {
                    let begin = end;
                    end += message.frame().len();
                    match message.header().is_oneway() {
                        true if taken <= begin => whole.push(message.frame().clone()),
                        true if taken < end => cut += 1,
                        _ => {}
                    }
                }
                let (again, lost) = oneways(outbox.clear(), &limits);
                let again: Vec<Bytes> = again.iter().map(|message| message.frame().clone()).collect();
                // A call of which a part has gone may hide the request after it.
                let missing = whole.len() - again.len();
                assert!(whole.ends_with(&again) && missing <= 1, "{len} {taken}: {missing}");
                assert_eq!(lost, cut + missing, "{len} {taken}");
            }
        }
    }
}

//! Requests that run for long do not keep the reads in which they came.

use std::sync::Mutex;

use bothways_proto::{Header, Limits, Seq, frame};

use super::*;

/// Where each request lies in memory, and how long it is. None is ever answered.
#[derive(Default)]
struct Lies(Mutex<Vec<(usize, usize)>>);

impl ConnectionHandler for Lies {
    fn handle_request(&self, _: &Connection, message: Message) -> Answer {
        let frame = message.frame();
        self.0.lock().expect("no panic").push((frame.as_ptr() as usize, frame.len()));
        Answer::Later(Box::pin(std::future::pending()), None)
    }

    fn handle_hello(&self, _: &Connection, _: Metadata) -> BoxFuture<Result<(), crate::error::AuthError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn handle_closed(&self, _: &Connection, _: &CloseReason) {}
}

/// The first sixteen lie one behind the other, as they came; each later one is copied out of its read.
#[tokio::test(start_paused = true)]
async fn of_many_that_run_the_later_ones_are_copied() {
    let _limit = limit("of_many_that_run_the_later_ones_are_copied");
    let (client, server) = memory::pair(1 << 20);
    let lies = Arc::new(Lies::default());
    let settings = Arc::new(Settings::default());
    let connection = Connection::start(
        Role::Server,
        server.into(),
        settings,
        Arc::clone(&lies) as Arc<dyn ConnectionHandler>,
        None,
        |_| {},
    );
    let request = |number| {
        let header = Header::request(Seq::new(number), SerializeType::RAW);
        frame(header, "T", "wait", &Metadata::new(), &[7; 300], &Limits::default()).expect("small")
    };
    let all: Vec<u8> = (0..20).flat_map(request).collect();
    assert_eq!(client.try_write(&[IoSlice::new(&all)]).expect("there is room"), all.len());
    while lies.0.lock().expect("no panic").len() < 20 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let lies = lies.0.lock().expect("no panic").clone();
    let as_they_came = lies.windows(2).filter(|pair| pair[0].0 + pair[0].1 == pair[1].0).count();
    assert_eq!(as_they_came, 15, "of sixteen all but the first lie behind another: {lies:?}");
    connection.close();
}

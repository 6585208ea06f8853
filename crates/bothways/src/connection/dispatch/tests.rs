//! When a caller gives up, and which replies are packed apart.

use bothways_proto::{Header, Metadata, Role, SerializeType};

use super::*;
use crate::connection::alone::{alone, negotiate};

fn request(pairs: &Metadata, compress: CompressType) -> Message {
    let header = Header::request(Seq::new(1), SerializeType::RAW).with_compress(compress);
    Message::new(header, "T", "Echo", pairs, b"")
}

/// A reply is packed apart if its request was packed, and it is large and no failure.
#[test]
fn large_replies_to_packed_requests_are_packed_apart() {
    let [plain, packed] = [CompressType::NONE, CompressType::GZIP].map(|it| request(&Metadata::new(), it));
    let reply = |len| Reply::ok(vec![0; len]);
    let most = packing::IN_LINE_BYTES;
    assert!(!takes_long_to_pack(&packed, &reply(most)) && takes_long_to_pack(&packed, &reply(most + 1)));
    assert!(!takes_long_to_pack(&plain, &reply(most + 1)));
    assert!(!takes_long_to_pack(&packed, &Reply::error("x".repeat(most + 1))));
}

/// A deadline that has passed is one among peers of ours; a plain client may say zero for none.
#[tokio::test(start_paused = true)]
async fn a_deadline_has_passed_or_is_none() {
    for negotiated in [false, true] {
        let (connection, _far) = alone(Role::Server);
        if negotiated {
            negotiate(&connection, Capabilities::ALL);
        }
        let of = |text: Option<&str>| {
            let pairs = text.map_or_else(Metadata::new, |text| Metadata::new().with(keys::SERVER_TIMEOUT, text));
            deadline(&connection, &request(&pairs, CompressType::NONE)).map_err(|_| ())
        };
        for none in [None, Some("x"), Some("")] {
            assert_eq!(of(none), Ok(None), "{none:?}");
        }
        for passed in ["0", "-1"] {
            assert_eq!(of(Some(passed)), if negotiated { Err(()) } else { Ok(None) }, "{passed}");
        }
        assert_eq!(of(Some("1")), Ok(Some(Instant::now() + Duration::from_millis(1))));
    }
}

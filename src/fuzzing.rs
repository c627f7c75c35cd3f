//! What the fuzz targets call: bytes of a peer, taken through the same code as in production, with what must hold
//! afterwards. A violation panics.

use crate::server::{Credentials, Login, Owed};
use crate::session::{Link, Opening, Progress, Session};
use crate::wire::error::Report;
use crate::wire::{Framer, backend, frontend, startup};
use bytes::Bytes;

/// A first packet.
pub fn startup(bytes: &[u8]) {
    let whole = startup::read(bytes);
    if let Ok(Some((_, used))) = &whole {
        assert!(*used <= bytes.len(), "no packet is longer than what was sent");
        assert_eq!(startup::read(&bytes[..*used]), whole, "what follows a packet does not change it");
        assert_eq!(
            startup::read(&bytes[..used - 1]),
            Ok(None),
            "a packet without its last byte is not whole"
        );
    }
}

/// A client's stream after login: idle, then with a server. The first byte says where it is cut.
pub fn client(bytes: &[u8]) {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    if let Opening::Incomplete(at) | Opening::NeedsServer(at) = Session::default().opening(stream) {
        assert!(at <= stream.len());
    }
    let whole = passed(&[stream]);
    let cut = usize::from(cut).min(stream.len());
    assert_eq!(passed(&[&stream[..cut], &stream[cut..]]), whole, "the cut does not matter");
}

/// What reaches the server of a stream in pieces, and how many answers it owes.
fn passed(pieces: &[&[u8]]) -> (Vec<u8>, usize) {
    let (mut session, mut owed, mut bytes) = (Session::default(), Owed::default(), Vec::new());
    for piece in pieces {
        let mut link = Link { owed: &mut owed, prepared: None };
        let passage = session.pass(piece, &mut Progress::default(), &mut link);
        bytes.extend_from_slice(passage.kept.as_slice());
        bytes.extend_from_slice(&piece[passage.range]);
        if passage.end.is_some() {
            break;
        }
    }
    (bytes, owed.len())
}

/// A server's stream: as answers to a batch of everything, as a login, and each body as what is read of it.
pub fn server(bytes: &[u8]) {
    let mut owed = Owed::default();
    for tag in *b"QPBDESFC" {
        owed.sent(tag);
    }
    let mut login = Login::new(Credentials { user: "user".into(), password: Some("password".into()) });
    let mut login_goes_on = true;
    let (mut framer, mut at) = (Framer::default(), 0);
    while let Ok(Some(segment)) = framer.next(bytes, &mut at, backend::longest) {
        assert!(segment.range.end <= bytes.len() && segment.body_part(bytes).len() <= segment.body as usize);
        let sensible = owed.received(segment.tag).is_ok();
        assert!(sensible || !owed.in_doubt(), "in doubt nothing is nonsense");
        if let Some(body) = segment.whole_body(bytes) {
            let _ = Report::read(body).to_string();
            let _ = backend::read_parameter_status(body);
            let _ = backend::read_backend_key_data(body);
            if login_goes_on {
                login_goes_on = login.received(segment.tag, &Bytes::copy_from_slice(body)).is_ok();
            }
        }
    }
    let _ = frontend::longest(framer.kept().as_slice().first().copied().unwrap_or_default());
}

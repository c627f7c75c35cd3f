//! What the fuzz targets call: bytes of a peer, taken through the same code as in production, with what must hold
//! afterwards. A violation panics.

mod client;
mod postgres;
mod session;
mod world;

pub use session::session;

use crate::guard::{self, Kind, Kinds};
use crate::prepared::{Exchange, Names, OnServer, Show, Statements, Unnamed, Watch};
use crate::server::{Credentials, Login, Owed};
use crate::session::{Link, Opening, Progress, Session};
use crate::wire::error::Report;
use crate::wire::{Framer, backend, frontend, startup};
use bytes::{Bytes, BytesMut};

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
    let pieces = [&stream[..cut], &stream[cut..]];
    assert_eq!(passed(&pieces), whole, "the cut does not matter");
    for watches in [false, true] {
        let mut followed = Followed { watches, ..Followed::default() };
        followed.pass(&[stream]);
        let mut in_pieces = Followed { watches, ..Followed::default() };
        in_pieces.pass(&pieces);
        assert_eq!(in_pieces.sent, followed.sent, "nor if statements are followed");
        assert_eq!(in_pieces.server.in_flight(), followed.server.in_flight());
    }
}

/// A client whose named statements are followed, and its server.
#[derive(Default)]
struct Followed {
    session: Session,
    owed: Owed,
    names: Option<Box<Names>>,
    server: OnServer,
    statements: Statements,
    /// What would be left behind is refused.
    watches: bool,
    sent: Vec<u8>,
}

impl Followed {
    /// Takes a stream to the server, up to where it would have to wait for answers.
    fn pass(&mut self, pieces: &[&[u8]]) {
        let (mut held, mut out) = (Vec::new(), BytesMut::new());
        for piece in pieces {
            held.extend_from_slice(piece);
            let bytes = std::mem::take(&mut held);
            let mut progress = Progress::default();
            let prepared = Exchange {
                context: &String::new,
                statements: &mut self.statements,
                names: &mut self.names,
                unnamed: &mut Unnamed::default(),
                server: &mut self.server,
                failed: false,
                statements_max: 2,
                follows: true,
                watch: self.watches.then(|| Watch {
                    session: guard::Session { follows: &|_| false, escapes: &|| false },
                    refused: Kind::ALL.into_iter().collect(),
                    seen: Kinds::NONE,
                }),
                out: &mut out,
                doomed: &mut None,
            };
            let mut link = Link { owed: &mut self.owed, prepared: Some(prepared) };
            loop {
                let passage = self.session.pass(&bytes, &mut progress, &mut link);
                self.sent.extend_from_slice(passage.kept.as_slice());
                self.sent.extend_from_slice(&bytes[passage.range]);
                if let Some(out) = link.rewritten() {
                    self.sent.extend_from_slice(&out.split());
                }
                if let Some(waits) = passage.held {
                    held.extend_from_slice(waits.kept.as_slice());
                    held.extend_from_slice(&bytes[waits.from..]);
                    if waits.until == crate::session::Until::Answers {
                        return;
                    }
                }
                if passage.end.is_some() {
                    return;
                }
                if !passage.rewritten {
                    break;
                }
            }
        }
    }

    /// Takes a message of the server, as far as it makes sense.
    fn receive(&mut self, tag: u8, body: &[u8]) {
        let Ok(receipt) = self.owed.received(tag) else { return };
        let (show, edit) = self.server.received(receipt, self.names.as_deref_mut());
        if let Some(edit) = edit {
            let message = edit.apply(body, &mut self.server, self.names.as_deref_mut());
            assert!(message.starts_with(b"E"), "an error stays one");
        }
        if show == Show::Collect {
            self.server.described(tag, body, self.names.as_deref_mut());
        }
        if tag == backend::tag::COMMAND_COMPLETE {
            self.server.completed(body, body.len(), self.names.as_deref_mut());
        }
        assert!(self.server.in_flight() <= self.owed.len(), "a note belongs to an entry");
    }
}

/// Statements of each kind, used well and badly.
const STATEMENTS: &[u8] = b"P\0\0\0\x0fa\0select\0\0\0B\0\0\0\x0d\0a\0\0\0\0\0\0\0D\0\0\0\x07Sa\0P\0\0\0\x0ea\0twice\0\0\0\
    E\0\0\0\x09\0\0\0\0\0P\0\0\0\x0eb\0other\0\0\0C\0\0\0\x07Sa\0D\0\0\0\x07Sx\0P\0\0\0\x0ec\0third\0\0\0S\0\0\0\x04";

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
    let credentials = Credentials { user: "user".into(), password: Some("password".into()) };
    let mut login = Login::new(credentials, 2, "select 1");
    let mut followed = Followed::default();
    followed.pass(&[STATEMENTS]);
    assert!(followed.owed.len() > 9, "the script was taken");
    let mut login_goes_on = true;
    let (mut framer, mut at) = (Framer::default(), 0);
    while let Ok(Some(segment)) = framer.next(bytes, &mut at, backend::longest) {
        assert!(segment.range.end <= bytes.len() && segment.body_part(bytes).len() <= segment.body as usize);
        let sensible = owed.received(segment.tag).is_ok();
        assert!(sensible || !owed.in_doubt(), "in doubt nothing is nonsense");
        if let Some(body) = segment.whole_body(bytes) {
            followed.receive(segment.tag, body);
            let _ = Report::read(body).to_string();
            let _ = backend::read_parameter_status(body);
            let _ = backend::read_backend_key_data(body);
            let _ = backend::read_negotiate_protocol_version(body);
            if login_goes_on {
                login_goes_on = login.received(segment.tag, &Bytes::copy_from_slice(body)).is_ok();
            }
        }
    }
    let _ = frontend::longest(framer.kept().as_slice().first().copied().unwrap_or_default());
}

//! The names that one client gave to statements.

use super::Statement;
use super::statements::Shape;
use hashbrown::HashMap;
use std::rc::Rc;

/// A client's named statements.
#[derive(Debug, Default)]
pub struct Names {
    entries: HashMap<Rc<[u8]>, Entry>,
    /// What they hold, names and texts, each text counted for each name.
    bytes: usize,
}

#[derive(Debug, Default)]
struct Entry {
    /// According to the answers so far.
    defined: Option<Rc<Statement>>,
    /// The client deallocated all statements, or may have: it may use the name, and define it again.
    released: bool,
    /// What the statement looked like when the client prepared it; unknown, it takes it as it comes.
    told: Option<Shape>,
    /// Parses and Closes of this name in flight, all of one group, and what the last of them will make of it.
    pending: u32,
    group: u32,
    last: Option<Rc<Statement>>,
}

/// What a name means in a message that is sent now.
#[derive(Debug)]
pub(super) enum Meaning {
    /// Nothing.
    Unknown,
    /// That depends on an answer that has not come.
    Uncertain,
    /// This.
    Known(Known),
}

/// A name that means something.
#[derive(Debug)]
pub(super) struct Known {
    pub name: Rc<[u8]>,
    pub statement: Rc<Statement>,
    /// It may be defined again.
    pub released: bool,
    /// What the client knows the statement to look like.
    pub told: Option<Shape>,
}

impl Names {
    /// What `name` means in a message of `group`.
    #[inline]
    pub(super) fn look_up(&self, name: &[u8], group: u32) -> Meaning {
        let Some((name, entry)) = self.entries.get_key_value(significant(name)) else {
            return Meaning::Unknown;
        };
        let statement = match entry.pending {
            0 => &entry.defined,
            _ if entry.group == group => &entry.last,
            _ => return Meaning::Uncertain,
        };
        match statement {
            Some(statement) => Meaning::Known(Known {
                name: name.clone(),
                statement: statement.clone(),
                released: entry.released,
                told: entry.told.filter(|_| entry.pending == 0),
            }),
            None => Meaning::Unknown,
        }
    }

    /// A Parse of `name` (or, without a statement, a Close) is sent in `group`. The name as it is kept.
    pub(super) fn sent(&mut self, name: &[u8], statement: Option<Rc<Statement>>, group: u32) -> Rc<[u8]> {
        let name = significant(name);
        self.bytes += size(name, statement.as_ref());
        let kept = match self.entries.get_key_value(name) {
            Some((kept, _)) => kept.clone(),
            None => name.into(),
        };
        let entry = self.entries.entry(kept.clone()).or_default();
        entry.pending += 1;
        entry.group = group;
        entry.last = statement;
        kept
    }

    /// That Parse or Close is answered (`done`), or failed or was skipped.
    pub(super) fn ended(&mut self, name: &[u8], statement: Option<Rc<Statement>>, done: bool) {
        let Some(entry) = self.entries.get_mut(name) else { return };
        let gone = if done {
            entry.released = false;
            entry.told = statement.as_ref().and_then(|statement| statement.shape.get());
            std::mem::replace(&mut entry.defined, statement)
        } else {
            statement
        };
        entry.pending = entry.pending.saturating_sub(1);
        if entry.pending == 0 {
            entry.last = None;
            if entry.defined.is_none() {
                self.entries.remove(name);
            }
        }
        self.bytes -= size(name, gone.as_ref());
    }

    /// The client knows now what the statement of this name looks like, or that it has changed.
    pub(super) fn tell(&mut self, name: &[u8], shape: Option<Shape>) {
        if let Some(entry) = self.entries.get_mut(significant(name)) {
            entry.told = shape;
        }
    }

    /// The client deallocated all of its statements. It may go on to use them all the same: on PostgreSQL's side they
    /// had other names, and who else would want them back?
    pub(super) fn release_all(&mut self) {
        for entry in self.entries.values_mut().filter(|entry| entry.defined.is_some()) {
            entry.released = true;
        }
    }

    /// Makes room for so many bytes more, below `bytes_max`; false if there is not that much.
    pub(super) fn make_room(&mut self, name: &[u8], statement: &Rc<Statement>, bytes_max: usize) -> bool {
        let more = size(significant(name), Some(statement));
        if self.bytes + more > bytes_max {
            self.drop_released();
        }
        self.bytes + more <= bytes_max
    }

    fn drop_released(&mut self) {
        let mut freed = 0;
        self.entries.retain(|name, entry| {
            let goes = entry.released && entry.pending == 0;
            freed += if goes { size(name, entry.defined.as_ref()) } else { 0 };
            !goes
        });
        self.bytes -= freed;
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// There are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What they hold.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// PostgreSQL looks at the first 63 bytes of a statement's name.
fn significant(name: &[u8]) -> &[u8] {
    &name[..name.len().min(NAME_BYTES_SIGNIFICANT)]
}

fn size(name: &[u8], statement: Option<&Rc<Statement>>) -> usize {
    statement.map_or(0, |statement| name.len() + statement.body.len() + ENTRY_BYTES)
}

/// `NAMEDATALEN` - 1.
const NAME_BYTES_SIGNIFICANT: usize = 63;

/// An entry of the table, with the counts of the shared allocations.
const ENTRY_BYTES: usize = 128;

#[cfg(test)]
mod tests {
    use super::super::Statements;
    use super::*;

    fn statement(text: &str) -> Rc<Statement> {
        Statements::default().intern(format!("{text}\0\0\0").as_bytes())
    }

    #[test]
    fn a_name_counts_within_its_group_before_it_is_answered() {
        let mut names = Names::default();
        let first = statement("first");
        names.sent(b"a", Some(first.clone()), 1);
        assert!(matches!(names.look_up(b"a", 1), Meaning::Known(..)));
        assert!(matches!(names.look_up(b"a", 2), Meaning::Uncertain));
        names.ended(b"a", Some(first.clone()), true);
        assert!(
            matches!(names.look_up(b"a", 2), Meaning::Known(known) if Rc::ptr_eq(&known.statement, &first))
        );
        names.sent(b"a", None, 2);
        assert!(matches!(names.look_up(b"a", 2), Meaning::Unknown));
        names.ended(b"a", None, false);
        assert!(matches!(names.look_up(b"a", 3), Meaning::Known(..)), "the Close was skipped");
        names.sent(b"a", None, 3);
        names.ended(b"a", None, true);
        assert!(names.is_empty());
        assert_eq!(names.bytes(), 0);
    }

    #[test]
    fn a_parse_that_fails_leaves_no_name() {
        let mut names = Names::default();
        names.sent(b"a", Some(statement("wrong")), 1);
        names.ended(b"a", Some(statement("wrong")), false);
        assert!(names.is_empty() && names.bytes() == 0);
    }

    #[test]
    fn names_are_cut_off_where_postgresql_cuts_them() {
        let mut names = Names::default();
        let (long, longer) = ([b'n'; 63], [b'n'; 4097]);
        let kept = names.sent(&longer, Some(statement("x")), 1);
        names.ended(&kept, Some(statement("x")), true);
        assert!(matches!(names.look_up(&long, 2), Meaning::Known(..)));
        assert!(matches!(names.look_up(&long[..62], 2), Meaning::Unknown));
    }

    #[test]
    fn released_names_make_room() {
        let mut names = Names::default();
        let text = statement(&"x".repeat(1000));
        for number in 0..3u8 {
            assert!(names.make_room(&[number], &text, 4000));
            let kept = names.sent(&[number], Some(text.clone()), 0);
            names.ended(&kept, Some(text.clone()), true);
        }
        assert!(!names.make_room(b"d", &text, 4000));
        names.release_all();
        assert!(matches!(names.look_up(&[0], 1), Meaning::Known(known) if known.released));
        assert!(names.make_room(b"d", &text, 4000));
        assert_eq!((names.len(), names.bytes()), (0, 0));
    }
}

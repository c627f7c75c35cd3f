//! Permits: the right to hold server connections. Who may open one, who must give one up, and what moves between shards.
//!
//! Two machines. A [`Ledger`] owns the permits of one endpoint; one shard runs it. A [`Share`] is a shard's side of it:
//! what the shard holds, what it owes, what it needs. Both only count; neither knows a client, a server, a clock or a
//! mailbox. They write to each other: [`Request`] and [`Order`].
//!
//! # A permit's life
//!
//! ```text
//!            grant                     rest: Close, or it ended          Returned: PostgreSQL has closed it
//!   free ------------> at a shard ----------------------------> closing -----------------------------------> free
//!                        |      ^
//!            rest:       |      | arrived
//!            HandOver    v      |
//!                      on the way to another shard
//! ```
//!
//! [`Permit`] is the thing itself: it is made by the ledger's grant, lies in a letter or with its connection, and is
//! unmade when it comes back. The ledger's books say at each moment where each permit is, or is going to be: a grant
//! counts at the shard when it is written, a move when the giving shard has written it.
//!
//! # How decisions are taken
//!
//! Between routes (`balance`, level 1): a route that wants permits is served in the order: one that something is free for;
//! below its floor; least for its weight; and among those that have nothing, longest waiting. What is free is granted; what
//! is being recalled is planned for; for the rest a route that can be spared most must give, floors left alone:
//!
//! - at once, if the other is below its floor, or if this one has more by two (for its weight) and uses what it has;
//! - when it does not use what it has: at once if its clients have left, after 5 ms if it has more by two or the other has
//!   nothing, after a linger (200 ms) otherwise;
//! - when it has had more for long enough: a quantum (50 ms) where the other has nothing, a debt of two seconds where parts
//!   cannot be divided evenly.
//!
//! Quantum, linger and debt are longer where opening a connection takes long. So a transfer either brings the routes closer or
//! follows a delay, and two routes cannot evict each other in turn at the speed of letters. While dials fail, nothing that
//! works is closed in order to open something, but for one at a time.
//!
//! Between the shards of a route (level 2): what rests anywhere goes to a shard that has none, and to one where a client has
//! waited for a millisecond (most of what rests is between two transactions, and most waits are shorter where there are
//! connections); else a shard that lacks a connection of its part, by clients at work and waiting, is given one; and one that
//! has none is given one as soon as nobody of the giving shard has waited as long.
//!
//! A recall is a debt that is paid by a connection at rest or else by the next that comes to rest, ahead of the shard's
//! own waiting clients; closing comes before moving, lest moves hide from another route what could be closed for it.
//! One that is not paid for too long, because the transactions there are long, is taken back and made elsewhere. A
//! connection that its client keeps (pinned) pays when the client leaves; it is asked when nobody else can pay.
//!
//! # Why the guarantees hold
//!
//! 1. **The limit.** [`Ledger`] grants only while permits given are fewer than the limit (asserted), and a permit comes
//!    back only when PostgreSQL has closed the connection. A connection exists only with a permit: [`Action::Dial`]
//!    brings one. A lower limit makes nothing free until enough have come back, and recalls the excess. What was granted
//!    before is used even if its letter is read after: its permit counts as given since it was written, and is recalled as
//!    all others are once its connection rests.
//! 2. **Conservation.** A permit cannot be copied. One that is dropped stays given in the books, so that no connection is
//!    opened too many; and that none is, tests see at the end of each world, when all must have come back
//!    ([`Ledger::is_settled`]). The type does not panic: with a shard that ends at once its permits end too. The books
//!    move a permit in one step from one place to another; that routes and shards add up to what was given is asserted after each round of decisions.
//! 3. **Work conserving.** A want reaches the ledger with one letter, at once (a rise is never held back but by an
//!    unanswered letter), and the next round of decisions, 50 us apart (and as much more for each 256 routes), grants what is
//!    free, to the governor's measure. While somebody wants, shards tell what rests, at once too, and what rests of the same
//!    route is moved: at once to a shard that has none, else when a client there has waited for a millisecond.
//! 4. **Fairness.** By level 1 a route that waits with less than its part finds a richer one, unless all are within one
//!    connection of their part; the recall is paid at rest, or at the next release, ahead of the rich route's queue.
//!    Where that does not come within 10 ms, another shard or route is asked instead, so that one long transaction does not
//!    keep whoever waits. Among routes that have
//!    nothing the longest waiting is next, so that none waits for more than the others' turns. Within a shard and route
//!    the queue is first come, first served; between shards level 2.
//! 5. **No polling.** Waiting clients are woken by [`Rest::Serve`] or their deadline; both machines act on letters and
//!    on deadlines they name. The ledger names those at which time decides something: a quantum or a linger that ends, a
//!    debt that comes due, a pause after a failed dial, a recall that is overdue, each of which doubles the patience up to a
//!    second. A share names the end of a window in which something happened, and when a client will have waited for a
//!    millisecond, once. While a client only waits, however long, neither wakes.
//! 6. **The hot path.** [`Share::link_idle`] and [`Share::rest`] with nothing owed and nobody waiting count up and down.
//!    Only while somebody lacks a permit, which [`Status::tight`] says, and 20 ms longer, do they look at what was told; and
//!    levels, as [`Share`] says, change less often than queues do.
//!
//! Letters of all senders to one mailbox must arrive in the order they were sent in, those between a ledger and the shard
//! that runs it at once, and a shard's letters must be sent before its connections leave. How many can be unread at once
//! is what [`letters_max`] says.

mod account;
mod balance;
mod governor;
mod homes;
mod letters;
mod owner;
mod permit;
mod policy;
mod share;
mod standing;

pub use account::Totals;
pub use homes::{PERMITS_PER_HOME, homes};
pub use letters::{Destination, Due, Failure, Level, Order, Reason, Request, Status, letters_max};
pub use owner::{Ledger, Overview, Row};
pub use permit::Permit;
pub use policy::{Levels, Policy, Terms};
pub use share::{Action, Counts, Rest, RouteNo, Share, WINDOW};

//! Who gets a server connection, when, and for how long.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::fake_server::{self, FakeServer};
use crate::pooler::{Plan, Target, login};
use crate::process::eventually;
use crate::wire::{Client, Frames};

/// A1: a hundred transactions of one client cost one backend.
#[test]
fn a1_one_client_one_backend() {
    for shards in [1, 2] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let mark = cluster.mark();
        let pooler = Plan::new(cluster).shards(shards).start();
        let mut client = pooler.client(&user);
        for number in 0..100 {
            let reply = client.query(&format!("select {number}")).expect("a server");
            assert_eq!(reply.value(), number.to_string());
        }
        client.terminate();
        assert_eq!(cluster.starts_since(mark, &user), 1);
        pooler.finish();
    }
}

/// A1: the server is back in its pool before the client reads ReadyForQuery, so whoever comes next finds it.
#[test]
fn a1_back_to_back_clients_share_a_backend() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).start();
    let (mut one, mut two) = (pooler.client(&user), pooler.client(&user));
    let pid = one.query("select pg_backend_pid()").expect("a server").value();
    for _ in 0..200 {
        for client in [&mut one, &mut two] {
            assert_eq!(client.query("select pg_backend_pid()").expect("a server").value(), pid);
        }
    }
    for _ in 0..50 {
        let mut client = pooler.client(&user);
        assert_eq!(client.query("select pg_backend_pid()").expect("a server").value(), pid);
        client.terminate_and_wait();
    }
    drop((one, two));
    pooler.finish();
}

/// A3: the cap holds at any instant, over all shards and routes, and everybody is served.
#[test]
fn a3_the_cap_is_never_exceeded() {
    for (mode, shards) in [("transaction", 1), ("transaction", 2), ("session", 2)] {
        let cluster = Cluster::shared();
        let (user, other) = (cluster.user("user"), cluster.user("other"));
        let pooler = Plan::new(cluster).mode(mode).shards(shards).max_connections(20).start();
        let sampler = cluster.sample();
        std::thread::scope(|scope| {
            for _ in 0..100 {
                scope.spawn(|| {
                    let mut client = pooler.client(&user);
                    client.query("select pg_sleep(0.2)").expect("served").value();
                    client.terminate();
                });
            }
        });
        pooler.assert_capped(&sampler.finish(), &user, 20);
        if Target::is_pgpinion() {
            // The cap is the endpoint's: another route's clients need the first one's idle servers.
            let sampler = cluster.sample();
            std::thread::scope(|scope| {
                for _ in 0..40 {
                    scope.spawn(|| {
                        pooler.client(&other).query("select pg_sleep(0.05)").expect("served").value()
                    });
                }
            });
            let samples = sampler.finish();
            assert!(samples.most(&other) > 1, "the second route got only {} servers", samples.most(&other));
            assert!(samples.most(&other) <= 20, "{} backends", samples.most(&other));
            assert!(cluster.backends(&user).len() + cluster.backends(&other).len() <= 20);
        }
        pooler.finish();
    }
}

/// A slot is counted until PostgreSQL has closed its end: a fake that is slow to do so never sees one more.
#[test]
fn a_slow_close_keeps_its_slot() {
    if !Target::is_pgpinion() {
        return;
    }
    let fake = FakeServer::start(|mut connection| {
        if !connection.log_in() {
            return;
        }
        connection.serve();
        // Terminate has come, or the connection broke; the backend takes its time.
        std::thread::sleep(Duration::from_secs(1));
    });
    let pooler =
        Plan::to_port(fake.port()).mode("session").max_connections(1).set("query_wait_timeout", 5).start();
    let mut one = pooler.client("user");
    assert_eq!(one.query("select 1").expect("the fake").value(), "select 1");
    // Half a message makes the server connection one that cannot be kept.
    one.send(&Frames::new().query("select 2").0[..7]).expect("open");
    one.reset();
    let start = Instant::now();
    let mut two = pooler.client("user");
    assert_eq!(two.query("select 3").expect("the fake").value(), "select 3");
    let waited = start.elapsed();
    if fake.accepted() == 2 {
        assert!(waited > Duration::from_millis(900), "a second connection after {waited:?}");
    }
    drop(two);
    pooler.finish();
}

/// Waits, limits and their errors.
#[test]
fn query_wait_timeout_ends_the_wait_in_time() {
    if Target::is_direct() {
        return;
    }
    for mode in ["transaction", "session"] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).mode(mode).max_connections(1).set("query_wait_timeout", 2).start();
        let mut holder = pooler.client(&user);
        holder.query("begin").expect("the only server");
        let start = Instant::now();
        let fault = match pooler.try_client(&user) {
            Ok(mut waiting) => waiting.query("select 1").expect_err("no server is free"),
            Err(fault) => fault,
        };
        let waited = start.elapsed();
        let text = fault.to_string();
        assert!(text.contains("query_wait_timeout"), "{text}");
        let late = if Target::is_pgpinion() { 2400 } else { 3500 };
        assert!((1950..late).contains(&(waited.as_millis() as u64)), "{waited:?}: {text}");
        if Target::is_pgpinion() {
            assert!(fault.code().starts_with("53"), "{text}");
        }
        // The holder was not disturbed, and its server serves again.
        assert_eq!(holder.query("commit").expect("kept").status, b'I');
        holder.terminate();
        let mut next = pooler.client(&user);
        next.query("select 1").expect("free again");
        drop(next);
        pooler.finish();
    }
}

/// First come, first served, by the times at which they were served.
#[test]
fn waiting_clients_are_served_in_order() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    let mut holder = pooler.client(&user);
    holder.query("begin").expect("the only server");
    let mut waiting: Vec<Client> = (0..10).map(|_| pooler.client(&user)).collect();
    for client in &mut waiting {
        client.send(&Frames::new().query("select clock_timestamp()").0).expect("open");
        std::thread::sleep(Duration::from_millis(20));
    }
    holder.query("commit").expect("kept");
    let times: Vec<String> =
        waiting.iter_mut().map(|client| client.collect().expect("served").value()).collect();
    assert!(times.is_sorted(), "{times:?}");
    drop((waiting, holder));
    pooler.finish();
}

/// A client that gives up in the queue costs nothing, and its turn is not lost.
#[test]
fn a_waiting_client_that_leaves_is_forgotten() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).start();
    for leaving in 0..3 {
        let mut holder = pooler.client(&user);
        holder.query("begin").expect("the only server");
        let mut gone = pooler.client(&user);
        gone.send(&Frames::new().query("create table must_not_exist (a int)").0).expect("open");
        std::thread::sleep(Duration::from_millis(50));
        match leaving {
            0 => gone.reset(),
            1 => gone.terminate(),
            _ => drop(gone),
        }
        let mut next = pooler.client(&user);
        next.send(&Frames::new().query("select 1").0).expect("open");
        std::thread::sleep(Duration::from_millis(50));
        holder.query("commit").expect("kept");
        assert_eq!(next.collect().expect("served").value(), "1");
        drop((holder, next));
    }
    if Target::is_pgpinion() {
        let found = cluster.value("select count(*) from pg_class where relname = 'must_not_exist'");
        assert_eq!(found, "0", "a statement ran for a client that had left the queue");
    }
    pooler.finish();
}

#[test]
fn max_client_conn_refuses_one_too_many() {
    if Target::is_direct() {
        return;
    }
    for shards in [1, 2] {
        let cluster = Cluster::shared();
        let user = cluster.user("user");
        let pooler = Plan::new(cluster).shards(shards).set("max_client_conn", 5).start();
        let mut five: Vec<Client> = (0..5).map(|_| pooler.client(&user)).collect();
        let refused = pooler.try_client(&user).expect_err("a sixth");
        assert!(refused.to_string().contains("no more connections allowed (max_client_conn)"), "{refused}");
        if Target::is_pgpinion() {
            assert_eq!(refused.code(), "53300");
        }
        for client in &mut five {
            assert_eq!(client.query("select 1").expect("not disturbed").value(), "1");
        }
        five.pop().expect("five").terminate();
        eventually("a place is free again", Duration::from_secs(2), || pooler.try_client(&user).is_ok());
        drop(five);
        pooler.finish();
    }
}

#[test]
fn client_idle_timeout_closes_the_idle_and_nobody_else() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).set("client_idle_timeout", 2).start();
    let (mut idle, mut busy) = (pooler.client(&user), pooler.client(&user));
    idle.query("select 1").expect("a server");
    let start = Instant::now();
    let idler = std::thread::spawn(move || (idle.read_to_end(Duration::from_secs(5)), start.elapsed()));
    while start.elapsed() < Duration::from_secs(4) {
        busy.query("select pg_sleep(0.1)").expect("not idle");
    }
    busy.query("select pg_sleep(2.5)").expect("a running query is not idle");
    let (error, after) = idler.join().expect("closed");
    assert!((1900..3500).contains(&(after.as_millis() as u64)), "{after:?}");
    let error = error.expect("a word at the end");
    assert!(error.message.contains("client_idle_timeout"), "{error}");
    drop(busy);
    pooler.finish();
}

#[test]
fn idle_transaction_timeout_frees_the_server() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).max_connections(1).set("idle_transaction_timeout", 1).start();
    let mut idle = pooler.client(&user);
    idle.query("begin").expect("the only server");
    let start = Instant::now();
    let mut next = pooler.client(&user);
    assert_eq!(next.query("select 1").expect("served after the timeout").value(), "1");
    let after = start.elapsed();
    assert!((900..2500).contains(&(after.as_millis() as u64)), "{after:?}");
    let error = idle.read_to_end(Duration::from_secs(2)).expect("a word at the end");
    assert!(
        error.message.contains("idle_transaction_timeout") || error.message.contains("idle transaction"),
        "{error}"
    );
    if Target::is_pgpinion() {
        assert_eq!(error.code, "25P03");
    }
    drop(next);
    cluster.assert_quiet(&user, 1);
    pooler.finish();
}

#[test]
fn client_login_timeout_closes_who_does_not_log_in() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let pooler = Plan::new(cluster).set("client_login_timeout", 1).start();
    let start = Instant::now();
    let mut silent = Client::dial(&pooler.address).expect("it accepts");
    assert!(silent.is_closed_within(Duration::from_secs(4)));
    let after = start.elapsed();
    let late = if Target::is_pgpinion() { 1700 } else { 3000 };
    assert!((900..late).contains(&(after.as_millis() as u64)), "{after:?}");
    pooler.finish();
}

#[test]
fn server_idle_timeout_closes_idle_servers() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).set("server_idle_timeout", 1).start();
    let mut clients: Vec<Client> = (0..3).map(|_| pooler.client(&user)).collect();
    for client in &mut clients {
        client.query("begin").expect("a server");
    }
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(cluster.backends(&user).len(), 3, "a server in use is not idle");
    for client in &mut clients {
        client.query("commit").expect("kept");
    }
    eventually("idle servers are closed", Duration::from_secs(4), || cluster.backends(&user).is_empty());
    for client in &mut clients {
        assert_eq!(client.query("select 1").expect("a new server").value(), "1");
    }
    drop(clients);
    pooler.finish();
}

#[test]
fn server_lifetime_replaces_servers_between_transactions() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let mark = cluster.mark();
    let pooler = Plan::new(cluster).max_connections(1).set("server_lifetime", 1).start();
    let mut client = pooler.client(&user);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        client.query("select pg_sleep(0.01)").expect("a server");
    }
    client.query("begin").expect("a server");
    let pid = client.query("select pg_backend_pid()").expect("a server").value();
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(client.query("select pg_backend_pid()").expect("the same server").value(), pid);
    client.query("commit").expect("a server");
    let starts = cluster.starts_since(mark, &user);
    assert!((2..=6).contains(&starts), "{starts} backends in 4 s at a lifetime of 1 s");
    drop(client);
    pooler.finish();
}

/// Session mode: what one client left is gone for the next, on the same backend.
#[test]
fn session_mode_resets_between_clients() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).mode("session").max_connections(1).start();
    let mut one = pooler.client(&user);
    let pid = one.query("select pg_backend_pid()").expect("a server").value();
    one.query("create temp table t (a int); set timezone = 'Asia/Tokyo'; set work_mem = '7MB'")
        .expect("a server");
    assert_eq!(one.query("select count(*) from t").expect("the same session").value(), "0");
    one.terminate();
    let mut two = pooler.client(&user);
    assert_eq!(two.query("select pg_backend_pid()").expect("a server").value(), pid);
    assert_eq!(two.query("select count(*) from t").expect("a server").code(), "42P01");
    assert_eq!(two.query("show work_mem").expect("a server").value(), "4MB");
    assert_eq!(two.query("show timezone").expect("a server").value(), "UTC");
    drop(two);
    pooler.finish();
}

/// Session mode: a server whose reset fails is closed, and its place is free again.
#[test]
fn a4_a_failing_reset_closes_the_server() {
    if !Target::is_pgpinion() {
        return;
    }
    let fake = FakeServer::start(|mut connection| {
        if !connection.log_in() {
            return;
        }
        while let Some((tag, body)) = connection.read_frame() {
            let going = if tag == b'Q' && body.starts_with(b"DISCARD") {
                let failure = fake_server::error("ERROR", "25001", "DISCARD ALL cannot run now");
                connection.send(&[failure, fake_server::ready(b'I')].concat())
            } else {
                connection.answer(tag, &body)
            };
            if !going {
                return;
            }
        }
    });
    let pooler =
        Plan::to_port(fake.port()).mode("session").max_connections(1).set("query_wait_timeout", 5).start();
    for round in 1..=3 {
        let mut client = pooler.client("user");
        assert_eq!(client.query("select 1").expect("a fresh server").value(), "select 1");
        client.terminate();
        assert_eq!(fake.accepted(), round);
    }
    pooler.finish();
}

/// Session mode: a client keeps its backend, also over named statements and idle times.
#[test]
fn session_mode_keeps_the_session() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).mode("session").shards(2).max_connections(4).start();
    let mut clients: Vec<Client> = (0..4).map(|_| pooler.client(&user)).collect();
    for client in &mut clients {
        let token = client.token();
        client
            .send(&Frames::new().parse("own", &format!("select '{token}' || $1::text")).sync().0)
            .expect("open");
        assert_eq!(client.collect().expect("a server").sequence, "1Z");
    }
    for round in 0..20 {
        for client in &mut clients {
            let frames = Frames::new().bind("", "own", &[&round.to_string()]).execute("", 0).sync();
            client.send(&frames.0).expect("open");
            let reply = client.collect().expect("the same server");
            assert_eq!(reply.sequence, "2DCZ");
            assert!(reply.value().ends_with(&round.to_string()));
        }
    }
    drop(clients);
    pooler.finish();
}

/// Statement mode: no transaction over several statements, and a refusal that says so.
#[test]
fn statement_mode_refuses_transactions() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).mode("statement").max_connections(2).start();
    for extended in [false, true] {
        let mut client = pooler.client(&user);
        for _ in 0..3 {
            assert_eq!(client.query("select 1").expect("a server").value(), "1");
        }
        let outcome = if extended { client.extended("begin", &[]) } else { client.query("begin") };
        let text = match outcome {
            Ok(reply) => {
                assert!(!reply.errors.is_empty(), "BEGIN is let through: {}", reply.sequence);
                reply.errors[0].to_string()
            }
            Err(fault) => fault.to_string(),
        };
        assert!(text.to_lowercase().contains("transaction"), "{text}");
        drop(client);
    }
    cluster.assert_quiet(&user, 2);
    let mut client = pooler.client(&user);
    assert_eq!(client.query("select 1").expect("a clean server").value(), "1");
    drop(client);
    pooler.finish();
}

/// The identity is part of what is pooled.
#[test]
fn a5_users_do_not_share_backends() {
    let cluster = Cluster::shared();
    let users = [cluster.user("user"), cluster.user("other")];
    let pooler = Plan::new(cluster).max_connections(2).start();
    let mut clients: Vec<Client> = users.iter().map(|user| pooler.client(user)).collect();
    for _ in 0..20 {
        for (client, user) in clients.iter_mut().zip(&users) {
            assert_eq!(&client.query("select current_user").expect("a server").value(), user);
        }
    }
    drop(clients);
    pooler.finish();
}

/// An application name and other startup parameters that a driver sends do not stop a login.
#[test]
fn startup_parameters_of_drivers_are_accepted() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).start();
    let plain = login(&user);
    let parameters = [
        plain[0],
        plain[1],
        ("application_name", "app \"x\" 'y'"),
        ("client_encoding", "UTF8"),
        ("DateStyle", "ISO"),
    ];
    let mut client = Client::connect(&pooler.address, &parameters).expect("a login");
    for name in
        ["server_version", "client_encoding", "standard_conforming_strings", "TimeZone", "integer_datetimes"]
    {
        assert!(
            client.parameters.iter().any(|(known, _)| known == name),
            "no {name}: {:?}",
            client.parameters
        );
    }
    assert_eq!(client.query("select 1").expect("a server").value(), "1");
    drop(client);
    pooler.finish();
}

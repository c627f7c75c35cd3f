//! Ways in: sockets, databases that do not exist, and how the pooler proves itself to PostgreSQL.

use std::time::{Duration, Instant};

use crate::cluster::Cluster;
use crate::pooler::{Plan, Pooler, Target, login};
use crate::process::{eventually, free_port};
use crate::wire::{Address, Client, Fault};

#[test]
fn unix_sockets_on_both_sides() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).upstream_folder(cluster.socket_folder()).unix_listener().start();
    for address in [Address::Unix(pooler.unix.clone()), pooler.address.clone()] {
        let mut client = Client::connect(&address, &login(&user)).expect("a login");
        for round in 0..20 {
            let token = client.token();
            assert_eq!(
                client.query(&format!("select '{token}'")).expect("a server").value(),
                token,
                "{round}"
            );
        }
        let large = client.query("select repeat('x', 3000000)").expect("a server").value();
        assert_eq!(large.len(), 3_000_000);
        if !Target::is_direct() {
            let address =
                client.query("select client_addr is null from pg_stat_activity where pid = pg_backend_pid()");
            assert_eq!(address.expect("a server").value(), "t", "the server side is not a unix socket");
        }
        client.terminate();
    }
    pooler.finish();
}

#[test]
fn unknown_databases_are_refused_by_postgresql() {
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    let pooler = Plan::new(cluster).start();
    let parameters = [("user", user.as_str()), ("database", "no_such_database")];
    let fault = match Client::connect(&pooler.address, &parameters) {
        Ok(mut client) => client.query("select 1").map(|reply| reply.sequence).expect_err("no such database"),
        Err(fault) => fault,
    };
    if !is_pgbouncer() {
        assert_eq!(fault.code(), "3D000", "{fault}");
    }
    assert!(fault.to_string().contains("no_such_database"), "{fault}");
    let mut client = pooler.client(&user);
    assert_eq!(client.query("select 1").expect("a server").value(), "1");
    drop(client);
    pooler.finish();
}

#[test]
fn roles_that_do_not_exist_are_refused_by_postgresql() {
    if is_pgbouncer() {
        return;
    }
    let pooler = Plan::new(Cluster::shared()).start();
    let fault = first_fault(&pooler, "no_such_role").expect("no such role");
    assert_eq!(fault.code(), "28000", "{fault}");
    pooler.finish();
}

/// All fields of an error during authentication are PostgreSQL's, and so is what it makes of a connection that it refuses.
#[test]
fn refusals_of_postgresql_have_all_their_fields() {
    if is_pgbouncer() {
        return;
    }
    for cluster in Cluster::of_each_release() {
        let user = cluster.user("user");
        let (closed, barred, busy) =
            (format!("closed_{user}"), format!("barred_{user}"), format!("busy_{user}"));
        cluster.sql(&format!("create database {closed} allow_connections false"));
        cluster.sql(&format!("create database {barred}"));
        cluster.sql(&format!("revoke connect on database {barred} from public"));
        cluster.sql(&format!("create role {barred}; create role {busy} login connection limit 0"));
        let pooler = Plan::new(cluster).set("query_wait_timeout", 2).start();
        let refusal = |address: &Address, user: &str, database: &str| {
            let mut client = Client::dial(address).expect("it accepts");
            client.send(&crate::wire::startup(&[("user", user), ("database", database)])).expect("open");
            let message = loop {
                match client.read() {
                    // PostgreSQL lets some in before it looks at their database, and we before we do.
                    Ok(message) if message.tag != b'E' => {}
                    Ok(message) => break message,
                    Err(fault) => panic!("{user}, {database}: {fault}"),
                }
            };
            String::from_utf8_lossy(&message.body).replace('\0', "~")
        };
        for (user, database) in [
            ("no_such_role", "app"),
            (user.as_str(), "no_such_database"),
            (&user, &closed),
            (&user, &barred),
            (&barred, "app"),
        ] {
            let expected = refusal(&cluster.address(), user, database);
            assert!(expected.contains("FATAL"), "{expected}");
            // The second time it is remembered.
            for _ in 0..2 {
                assert_eq!(refusal(&pooler.address, user, database), expected, "{user}, {database}");
            }
        }
        // What may pass is waited for, and is then the reason.
        let told = refusal(&pooler.address, &busy, "app");
        let reason = format!("too many connections for role \"{busy}\"");
        assert!(refusal(&cluster.address(), &busy, "app").contains(&reason));
        let code = if Target::is_direct() { "C53300~" } else { "C08006~" };
        assert!(told.contains(code) && told.contains(&reason), "{told}");
        cluster.sql(&format!("drop database {closed}"));
        cluster.sql(&format!("drop database {barred}"));
        pooler.finish();
    }
}

/// The pooler's own passwords: trust, cleartext, md5 and SCRAM, right and wrong.
#[test]
fn passwords_towards_postgresql() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::private(&[]);
    let secret = "s3cret of $the# house";
    cluster.sql(&format!(
        "set password_encryption = 'md5'; create role user_0 login password '{secret}';
         set password_encryption = 'scram-sha-256'; create role user_1 login password '{secret}';
         create role user_2 login password '{secret}'; create role user_3 login"
    ));
    let hba = "local all postgres trust\nhost all postgres all trust\nhost all user_0 all md5\n\
               host all user_1 all scram-sha-256\nhost all user_2 all password\nhost all user_3 all trust\n";
    cluster.set_hba(hba);
    eventually("pg_hba.conf is loaded", Duration::from_secs(5), || {
        Client::connect(&cluster.address(), &login("user_2")).is_err()
    });
    let quoted = if is_pgbouncer() { format!("'{secret}'") } else { secret.to_owned() };
    for user in ["user_0", "user_1", "user_2", "user_3"] {
        let mut plan = Plan::new(&cluster).database("password", &quoted);
        if is_pgbouncer() {
            plan = plan.database("user", user);
        }
        let pooler = plan.start();
        for _ in 0..3 {
            let mut client = pooler.client(user);
            assert_eq!(client.query("select current_user").expect("a server").value(), user);
            client.terminate();
        }
        assert!(!pooler.log().contains("s3cret"), "the password is in the log");
        pooler.finish();
    }
    if is_pgbouncer() {
        return;
    }
    for user in ["user_0", "user_1", "user_2"] {
        let pooler = Plan::new(&cluster).database("password", "wr0ng").set("query_wait_timeout", 3).start();
        for _ in 0..2 {
            let fault = first_fault(&pooler, user).expect("a wrong password");
            assert_eq!(fault.code(), "28P01", "{user}: {fault}");
        }
        assert!(!pooler.log().contains("wr0ng"), "the password is in the log");
        pooler.finish();
    }
}

/// A forced user and another name for the database.
#[test]
fn databases_may_force_user_and_name() {
    if Target::is_direct() {
        return;
    }
    let cluster = Cluster::shared();
    let (asked, forced) = (cluster.user("user"), cluster.user("other"));
    let pooler = Plan::new(cluster).database("user", &forced).database("dbname", "postgres").start();
    let mut client = pooler.client(&asked);
    let reply = client.query("select current_user || '/' || current_database()").expect("a server");
    assert_eq!(reply.value(), format!("{forced}/postgres"));
    drop(client);
    pooler.finish();
}

/// A PostgreSQL that is not there: an error that names it, in time, and service by itself once it is.
#[test]
fn postgresql_not_there_and_then_there() {
    if Target::is_direct() {
        return;
    }
    let port = free_port();
    let pooler = Plan::to_port(port).set("query_wait_timeout", 2).start();
    let start = Instant::now();
    let fault = first_fault(&pooler, "user").expect("nobody listens");
    let after = start.elapsed();
    assert!(!fault.is_timeout() && after < Duration::from_millis(3500), "{fault} after {after:?}");
    if Target::is_pgpinion() {
        assert!(matches!(fault.code(), "08006" | "08001" | "57P03"), "{fault}");
        assert!(fault.to_string().contains(&port.to_string()), "the address is not named: {fault}");
    }
    let fake = crate::proxy::Proxy::listening_at(port, Cluster::shared().port());
    let user = Cluster::shared().user("user");
    eventually("service resumes", Duration::from_secs(5), || first_fault(&pooler, &user).is_none());
    drop(fake);
    pooler.finish();
}

/// Clients that wait while PostgreSQL is away are served when it is back before their timeout.
#[test]
fn waiting_clients_survive_an_absence() {
    if Target::is_direct() {
        return;
    }
    let port = free_port();
    let pooler = Plan::to_port(port).set("query_wait_timeout", 10).start();
    let user = Cluster::shared().user("user");
    std::thread::scope(|scope| {
        for _ in 0..5 {
            scope.spawn(|| assert!(first_fault(&pooler, &user).is_none(), "PostgreSQL came in time"));
        }
        std::thread::sleep(Duration::from_millis(700));
        let proxy = crate::proxy::Proxy::listening_at(port, Cluster::shared().port());
        scope.spawn(move || {
            std::thread::sleep(Duration::from_secs(6));
            drop(proxy);
        });
    });
    pooler.finish();
}

fn first_fault(pooler: &Pooler, user: &str) -> Option<Fault> {
    match pooler.try_client(user) {
        Ok(mut client) => match client.query("select 1") {
            Ok(reply) => reply.errors.first().map(|error| Fault::Closed(Some(error.clone()))),
            Err(fault) => Some(fault),
        },
        Err(fault) => Some(fault),
    }
}

fn is_pgbouncer() -> bool {
    Target::current() == Target::Pgbouncer
}

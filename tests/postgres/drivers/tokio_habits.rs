//! tokio-postgres: it prepares everything under names of its own, pipelines what is asked at the same time, and closes
//! statements when they are dropped, whoever is linked by then.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt, pin_mut};
use tokio::task::{JoinHandle, LocalSet};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, NoTls};

use super::pooler;
use crate::cluster::Cluster;
use crate::pooler::Target;
use crate::wire::Address;

#[test]
fn tokio_postgres_pipelines_and_prepares() {
    if Target::current() == Target::Pgbouncer {
        return;
    }
    let cluster = Cluster::shared();
    let user = cluster.user("user");
    cluster.sql("create table if not exists tokio_rows (owner text, number int)");
    cluster.sql(&format!("grant select, insert on tokio_rows to {user}"));
    let pooler = pooler(cluster);
    let Address::Tcp(address) = pooler.address else { panic!("poolers of tests listen on TCP") };
    let parameters = format!("host={} port={} user={user} dbname=app", address.ip(), address.port());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    LocalSet::new().block_on(&runtime, async {
        let clients: Vec<JoinHandle<()>> =
            (0..CLIENTS).map(|number| tokio::task::spawn_local(habits(number, parameters.clone()))).collect();
        for client in clients {
            client.await.expect("a habit");
        }
    });
    assert_eq!(cluster.value("select count(*) from tokio_rows"), "0");
    pooler.finish();
}

async fn habits(number: usize, parameters: String) {
    let (mut client, connection) = tokio_postgres::connect(&parameters, NoTls).await.expect("a login");
    let connection = tokio::task::spawn_local(connection);
    let who = format!("client {number}");
    for _ in 0..5 {
        prepared(&client, &who).await.expect("prepared statements");
        pipelined(&client, &who).await.expect("a pipeline");
        transactions(&mut client, &who).await.expect("transactions");
        copies(&mut client, &who).await.expect("COPY");
        errors(&client, &who).await;
        cancelled(&client, &who).await;
    }
    drop(client);
    connection.await.expect("it does not panic").expect("an orderly end");
}

async fn prepared(client: &Client, who: &str) -> Result<(), Error> {
    let text = client.prepare("select $1::text, $2::int4 + 1").await?;
    for number in 0..20 {
        let row = client.query_one(&text, &[&who, &number]).await?;
        assert_eq!((row.get::<_, &str>(0), row.get::<_, i32>(1)), (who, number + 1));
        // A statement for once, which is closed right after.
        let row = client.query_one("select $1::int8 * 2", &[&i64::from(number)]).await?;
        assert_eq!(row.get::<_, i64>(0), 2 * i64::from(number));
    }
    // Types that it does not know make it ask the catalogue, with statements of its own that it keeps.
    let row = client.query_one("select array['a']::name[], '(1,2)'::point::text, 'x'::char", &[]).await?;
    assert_eq!(row.get::<_, Vec<String>>(0), ["a"]);
    Ok(())
}

/// Asked at the same time they go out together, and each waits for its own answer.
async fn pipelined(client: &Client, who: &str) -> Result<(), Error> {
    let text = client.prepare("select $1::text || $2::int4::text").await?;
    let numbers: Vec<i32> = (0..30).collect();
    let asked = numbers.iter().map(|number| {
        let text = &text;
        async move { client.query_one(text, &[&who, number]).await.map(|row| row.get::<_, String>(0)) }
    });
    let answers = futures_util::future::join_all(asked).await;
    for (number, answer) in numbers.iter().zip(answers) {
        assert_eq!(answer?, format!("{who}{number}"));
    }
    Ok(())
}

async fn transactions(client: &mut Client, who: &str) -> Result<(), Error> {
    let mut transaction = client.transaction().await?;
    transaction.execute("insert into tokio_rows values ($1, 1)", &[&who]).await?;
    let inner = transaction.savepoint("nested").await?;
    inner.execute("insert into tokio_rows values ($1, 2)", &[&who]).await?;
    inner.rollback().await?;
    let portal = transaction.bind("select i from generate_series(1, $1) i", &[&25_i32]).await?;
    let mut rows = 0;
    loop {
        let part = transaction.query_portal(&portal, 10).await?;
        rows += part.len();
        if part.len() < 10 {
            break;
        }
    }
    assert_eq!(rows, 25);
    let row = transaction.query_one("select count(*), min(owner) from tokio_rows", &[]).await?;
    assert_eq!((row.get::<_, i64>(0), row.get::<_, &str>(1)), (1, who));
    // Dropped: it rolls back without waiting for it.
    drop(transaction);
    let row = client.query_one("select count(*) from tokio_rows", &[]).await?;
    assert_eq!(row.get::<_, i64>(0), 0);
    Ok(())
}

async fn copies(client: &mut Client, who: &str) -> Result<(), Error> {
    let transaction = client.transaction().await?;
    let sink = transaction.copy_in("copy tokio_rows from stdin").await?;
    pin_mut!(sink);
    for number in 0..100 {
        sink.send(bytes::Bytes::from(format!("{who}\t{number}\n"))).await?;
    }
    assert_eq!(sink.finish().await?, 100);
    let rows = transaction.copy_out("copy (select * from tokio_rows order by number) to stdout").await?;
    pin_mut!(rows);
    let mut copied = Vec::new();
    while let Some(part) = rows.next().await {
        copied.extend_from_slice(&part?);
    }
    let expected: String = (0..100).map(|number| format!("{who}\t{number}\n")).collect();
    assert_eq!(String::from_utf8_lossy(&copied), expected);
    transaction.rollback().await?;
    // A COPY that is given up in the middle.
    let sink = client.copy_in::<_, bytes::Bytes>("copy tokio_rows from stdin").await?;
    drop(sink);
    Ok(())
}

async fn errors(client: &Client, who: &str) {
    let error = client.query("select 1 / $1::int4", &[&0_i32]).await.expect_err("divided by zero");
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO), "{who}");
    let error = client.prepare("select nothing from nowhere").await.expect_err("there is no such table");
    assert_eq!(error.code(), Some(&SqlState::UNDEFINED_TABLE), "{who}");
}

/// The query that runs is hit, and the next one is not.
async fn cancelled(client: &Client, who: &str) {
    let token = client.cancel_token();
    let asked = async { client.query_one("select pg_sleep(5), $1::text", &[&who]).await };
    let cancels = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        token.cancel_query(NoTls).await.expect("the pooler listens");
    };
    let (answer, ()) = futures_util::future::join(asked, cancels).await;
    if let Err(error) = answer {
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{who}");
    }
    let row = client.query_one("select $1::text", &[&who]).await.expect("it goes on");
    assert_eq!(row.get::<_, &str>(0), who);
}

const CLIENTS: usize = 6;

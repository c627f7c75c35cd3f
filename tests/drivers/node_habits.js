// node-postgres: named queries, which it prepares once per connection, among unnamed ones; parameters; errors; a pool.
const { Client, Pool } = require("pg");
const { version } = require("pg/package.json");

function check(got, expected) {
    if (JSON.stringify(got) !== JSON.stringify(expected)) {
        throw new Error(`${JSON.stringify(got)} instead of ${JSON.stringify(expected)}`);
    }
}

async function named(client, who) {
    for (let number = 0; number < 60; number++) {
        const token = `${who}-${number}`;
        const query = { name: "token", text: "select $1::text as token", values: [token] };
        check((await client.query(query)).rows, [{ token }]);
        // The same name means another text to another client.
        const own = { name: "own", text: `select '${who}' as who, $1::int as number`, values: [number] };
        check((await client.query(own)).rows, [{ who, number }]);
        check((await client.query("select $1::text as token", [token])).rows, [{ token }]);
    }
}

async function failing(client, who) {
    for (let number = 0; number < 10; number++) {
        const wrong = { name: `wrong ${number}`, text: "select * from nowhere where a = $1", values: [who] };
        await client.query(wrong).then(
            () => { throw new Error("nowhere exists"); },
            (error) => check(error.code, "42P01"),
        );
        await client.query({ name: "divide", text: "select 1 / $1::int", values: [0] }).then(
            () => { throw new Error("divided by zero"); },
            (error) => check(error.code, "22012"),
        );
    }
}

async function transactions(client, who) {
    for (let number = 0; number < 10; number++) {
        await client.query("begin");
        const query = { name: `in ${number % 3}`, text: `select ${number % 3} as third, $1::text as who`, values: [who] };
        check((await client.query(query)).rows, [{ third: number % 3, who }]);
        await client.query(number % 2 ? "commit" : "rollback");
        // All at once, without waiting.
        const queries = [0, 1, 2].map((each) => client.query({ name: "each", text: "select $1::int as each", values: [each] }));
        check((await Promise.all(queries)).map((result) => result.rows[0].each), [0, 1, 2]);
    }
}

async function session(number) {
    const client = new Client();
    await client.connect();
    for (const habit of [named, failing, transactions]) {
        await habit(client, `node ${number}`).catch((error) => {
            throw new Error(`${number}: ${habit.name}: ${error.message}`);
        });
    }
    await client.end();
}

async function pooled() {
    const pool = new Pool({ max: 4 });
    const queries = Array.from({ length: 100 }, (_, number) =>
        pool.query({ name: "pooled", text: "select $1::int as number", values: [number] }));
    check((await Promise.all(queries)).map((result) => result.rows[0].number), queries.map((_, number) => number));
    await pool.end();
}

Promise.allSettled([pooled(), ...Array.from({ length: 8 }, (_, number) => session(number))]).then((results) => {
    const failures = results.filter((result) => result.status === "rejected");
    console.log(`node-postgres ${version}`);
    failures.forEach((failure) => console.log(failure.reason.message));
    process.exit(failures.length > 0 ? 1 : 0);
});

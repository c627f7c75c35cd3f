// JDBC that prepares at the first use: batches, generated keys, cursors by fetch size, errors and savepoints, a table
// that changes, more statements than it keeps.

import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.sql.Savepoint;
import java.sql.Statement;
import java.util.ArrayList;
import java.util.List;
import java.util.Properties;
import java.util.concurrent.Callable;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Future;

public class Jdbc {
    static final int CLIENTS = 6;

    interface Habit {
        void run(Connection connection, String who) throws SQLException;
    }

    public static void main(String[] arguments) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(CLIENTS);
        List<Callable<String>> sessions = new ArrayList<>();
        for (int number = 0; number < CLIENTS; number++) {
            String who = "jdbc" + number;
            sessions.add(() -> session(who));
        }
        boolean failed = false;
        for (Future<String> outcome : threads.invokeAll(sessions)) {
            if (outcome.get() != null) {
                System.out.println(outcome.get());
                failed = true;
            }
        }
        System.out.println("JDBC " + DriverManager.getDriver(url()).getMajorVersion() + "."
                + DriverManager.getDriver(url()).getMinorVersion());
        System.exit(failed ? 1 : 0);
    }

    static String url() {
        return "jdbc:postgresql://" + System.getenv("PGHOST") + ":" + System.getenv("PGPORT") + "/" + System.getenv("PGDATABASE");
    }

    static String session(String who) {
        Properties properties = new Properties();
        properties.setProperty("user", System.getenv("PGUSER"));
        properties.setProperty("prepareThreshold", "1");
        properties.setProperty("preparedStatementCacheQueries", "50");
        Habit[] habits = {Jdbc::tokens, Jdbc::batches, Jdbc::cursors, Jdbc::savepoints, Jdbc::manyStatements, Jdbc::changedResult};
        String[] names = {"tokens", "batches", "cursors", "savepoints", "manyStatements", "changedResult"};
        int habit = 0;
        try (Connection connection = DriverManager.getConnection(url(), properties)) {
            for (; habit < habits.length; habit++) {
                habits[habit].run(connection, who);
            }
            return null;
        } catch (Throwable problem) {
            return who + ": " + names[Math.min(habit, names.length - 1)] + ": " + problem;
        }
    }

    static void check(Object got, Object expected) throws SQLException {
        if (!got.equals(expected)) {
            throw new SQLException(got + " instead of " + expected);
        }
    }

    static void tokens(Connection connection, String who) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("select ?::text, ?::int + 1")) {
            for (int number = 0; number < 60; number++) {
                statement.setString(1, who + number);
                statement.setInt(2, number);
                try (ResultSet rows = statement.executeQuery()) {
                    rows.next();
                    check(rows.getString(1), who + number);
                    check(rows.getInt(2), number + 1);
                }
            }
        }
    }

    static void batches(Connection connection, String who) throws SQLException {
        connection.setAutoCommit(false);
        try (Statement statement = connection.createStatement()) {
            statement.execute("create temp table batch (id serial, a int, b text) on commit drop");
        }
        String text = "insert into batch (a, b) values (?, ?)";
        try (PreparedStatement statement = connection.prepareStatement(text, Statement.RETURN_GENERATED_KEYS)) {
            for (int number = 0; number < 300; number++) {
                statement.setInt(1, number);
                statement.setString(2, who);
                statement.addBatch();
            }
            check(statement.executeBatch().length, 300);
            int keys = 0;
            try (ResultSet rows = statement.getGeneratedKeys()) {
                while (rows.next()) {
                    keys++;
                }
            }
            check(keys, 300);
        }
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void cursors(Connection connection, String who) throws SQLException {
        connection.setAutoCommit(false);
        try (PreparedStatement statement = connection.prepareStatement("select generate_series(1, ?)")) {
            statement.setFetchSize(50);
            statement.setInt(1, 500);
            long sum = 0;
            try (ResultSet rows = statement.executeQuery()) {
                while (rows.next()) {
                    sum += rows.getInt(1);
                }
            }
            check(sum, 125250L);
        }
        connection.commit();
        connection.setAutoCommit(true);
    }

    static void savepoints(Connection connection, String who) throws SQLException {
        connection.setAutoCommit(false);
        for (int number = 0; number < 10; number++) {
            Savepoint savepoint = connection.setSavepoint();
            try (PreparedStatement statement = connection.prepareStatement("select 1 / ?")) {
                statement.setInt(1, 0);
                statement.executeQuery();
                throw new SQLException("divided by zero");
            } catch (SQLException error) {
                check(error.getSQLState(), "22012");
                connection.rollback(savepoint);
            }
            try (PreparedStatement statement = connection.prepareStatement("select ?::text")) {
                statement.setString(1, who);
                ResultSet rows = statement.executeQuery();
                rows.next();
                check(rows.getString(1), who);
            }
        }
        connection.rollback();
        connection.setAutoCommit(true);
    }

    static void manyStatements(Connection connection, String who) throws SQLException {
        for (int number = 0; number < 240; number++) {
            try (PreparedStatement statement = connection.prepareStatement("select " + number % 120 + ", ?::text")) {
                statement.setString(1, who);
                ResultSet rows = statement.executeQuery();
                rows.next();
                check(rows.getInt(1), number % 120);
            }
        }
    }

    static void changedResult(Connection connection, String who) throws SQLException {
        try (Statement statement = connection.createStatement()) {
            statement.execute("create table " + who + " as select 1 as a");
            select(connection, who, 1);
            statement.execute("alter table " + who + " add b text");
            // Outside a transaction it prepares anew by itself.
            select(connection, who, 2);
            statement.execute("deallocate all");
            select(connection, who, 2);
            statement.execute("drop table " + who);
        }
    }

    static void select(Connection connection, String who, int columns) throws SQLException {
        try (PreparedStatement statement = connection.prepareStatement("select * from " + who + " where a = ?")) {
            for (int time = 0; time < 3; time++) {
                statement.setInt(1, 1);
                try (ResultSet rows = statement.executeQuery()) {
                    check(rows.getMetaData().getColumnCount(), columns);
                    check(rows.next(), true);
                }
            }
        }
    }
}

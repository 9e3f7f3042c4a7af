// JDBC as it comes: named statements after five uses, batches, transactions, cursors by fetch size, COPY.

import java.io.StringReader;
import java.io.StringWriter;
import java.sql.*;
import java.util.ArrayList;
import java.util.List;
import org.postgresql.PGConnection;

public final class JdbcDefault {
    private static final int CLIENTS = 8;
    private static String url;
    private static String user;
    private static String password;

    private static Connection connect() throws SQLException {
        return DriverManager.getConnection(url, user, password);
    }

    private static void expect(boolean holds, String what) {
        if (!holds) throw new AssertionError(what);
    }

    private static void preparedByItself() throws SQLException {
        try (Connection c = connect(); PreparedStatement s = c.prepareStatement("SELECT ? + 1")) {
            for (int n = 0; n < 30; n++) {
                s.setInt(1, n);
                try (ResultSet r = s.executeQuery()) {
                    expect(r.next() && r.getInt(1) == n + 1, "SELECT " + n + " + 1");
                }
            }
        }
    }

    private static void batches() throws SQLException {
        try (Connection c = connect(); Statement s = c.createStatement()) {
            s.execute("CREATE TABLE IF NOT EXISTS jdbc_rows (n int, t text)");
            c.setAutoCommit(false);
            try (PreparedStatement p = c.prepareStatement("INSERT INTO jdbc_rows VALUES (?, ?)")) {
                for (int n = 0; n < 1000; n++) {
                    p.setInt(1, n);
                    p.setString(2, "text " + n);
                    p.addBatch();
                }
                expect(p.executeBatch().length == 1000, "a batch of 1000");
            }
            c.commit();
            try (PreparedStatement p = c.prepareStatement("SELECT n FROM jdbc_rows ORDER BY n")) {
                p.setFetchSize(50);
                long sum = 0;
                try (ResultSet r = p.executeQuery()) {
                    while (r.next()) sum += r.getInt(1);
                }
                expect(sum == 499500, "sum by fetch size: " + sum);
            }
            c.rollback();
            s.execute("DROP TABLE jdbc_rows");
            c.commit();
        }
    }

    private static void errorsAndSavepoints() throws SQLException {
        try (Connection c = connect(); Statement s = c.createStatement()) {
            c.setAutoCommit(false);
            for (int n = 0; n < 12; n++) {
                Savepoint before = c.setSavepoint();
                try (PreparedStatement p = c.prepareStatement("SELECT 1 / ?")) {
                    p.setInt(1, 0);
                    p.executeQuery();
                    throw new AssertionError("a division by zero went through");
                } catch (SQLException e) {
                    expect("22012".equals(e.getSQLState()), e.getSQLState());
                }
                c.rollback(before);
                try (ResultSet r = s.executeQuery("SELECT " + n)) {
                    expect(r.next() && r.getInt(1) == n, "after the savepoint");
                }
            }
            c.commit();
        }
    }

    private static void copies() throws Exception {
        try (Connection c = connect(); Statement s = c.createStatement()) {
            c.setAutoCommit(false);
            s.execute("CREATE TEMP TABLE copied (n int) ON COMMIT DROP");
            StringBuilder rows = new StringBuilder();
            for (int n = 0; n < 5000; n++) rows.append(n).append('\n');
            var copy = c.unwrap(PGConnection.class).getCopyAPI();
            expect(copy.copyIn("COPY copied FROM STDIN", new StringReader(rows.toString())) == 5000, "COPY in");
            StringWriter out = new StringWriter();
            expect(copy.copyOut("COPY copied TO STDOUT", out) == 5000, "COPY out");
            c.commit();
        }
    }

    private static void timeoutsCancel() throws SQLException {
        try (Connection c = connect(); Statement s = c.createStatement()) {
            s.setQueryTimeout(1);
            try {
                s.execute("SELECT pg_sleep(60)");
                throw new AssertionError("a minute passed in a second");
            } catch (SQLException e) {
                expect("57014".equals(e.getSQLState()), e.getSQLState());
            }
            try (ResultSet r = s.executeQuery("SELECT 7")) {
                expect(r.next() && r.getInt(1) == 7, "after the cancel");
            }
        }
    }

    private static void manyAtOnce() throws Exception {
        List<Thread> threads = new ArrayList<>();
        List<Throwable> failures = java.util.Collections.synchronizedList(new ArrayList<>());
        for (int number = 0; number < CLIENTS; number++) {
            final int mine = number;
            threads.add(new Thread(() -> {
                String sql = "SELECT ? + " + mine + ", 'client " + mine + "'";
                try (Connection c = connect(); PreparedStatement s = c.prepareStatement(sql)) {
                    for (int n = 0; n < 40; n++) {
                        s.setInt(1, n);
                        try (ResultSet r = s.executeQuery()) {
                            expect(r.next() && r.getInt(1) == n + mine, "sum of client " + mine);
                            expect(r.getString(2).equals("client " + mine), "somebody else's row");
                        }
                    }
                } catch (Throwable e) {
                    failures.add(e);
                }
            }));
        }
        for (Thread thread : threads) thread.start();
        for (Thread thread : threads) thread.join();
        expect(failures.isEmpty(), failures.toString());
    }

    public static void main(String[] arguments) throws Exception {
        url = arguments[0];
        user = arguments[1];
        password = arguments[2];
        preparedByItself();
        System.out.println("ok preparedByItself");
        batches();
        System.out.println("ok batches");
        errorsAndSavepoints();
        System.out.println("ok errorsAndSavepoints");
        copies();
        System.out.println("ok copies");
        timeoutsCancel();
        System.out.println("ok timeoutsCancel");
        manyAtOnce();
        System.out.println("ok manyAtOnce");
    }
}

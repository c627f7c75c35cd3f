\set a random(1, 1000)
select :a + 1;
select count(*) from generate_series(1, :a);

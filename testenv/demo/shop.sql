-- A small shop with most kinds of things a database holds. {{scale}} is replaced.
CREATE ROLE shop_app NOLOGIN;
CREATE EXTENSION btree_gist;
CREATE SCHEMA shop AUTHORIZATION shop_app;
GRANT CREATE ON DATABASE shop TO shop_app;
SET SESSION AUTHORIZATION shop_app;
SET search_path = shop;

CREATE TYPE status AS ENUM ('new', 'paid', 'sent', 'returned');
CREATE DOMAIN email AS text CHECK (VALUE ~ '^[^@ ]+@[^@ ]+$');
CREATE TYPE address AS (street text, city text, zip text);

CREATE TABLE customers (
	id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
	name       text NOT NULL,
	mail       email NOT NULL UNIQUE,
	home       address,
	tags       text[] NOT NULL DEFAULT '{}',
	profile    jsonb NOT NULL DEFAULT '{}',
	photo      bytea,
	joined     timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE customers IS 'people, and their mail: "personal" data';

CREATE TABLE products (
	id        serial PRIMARY KEY,
	title     text NOT NULL,
	price     numeric(10,2) NOT NULL CHECK (price >= 0),
	vat       numeric(10,2) GENERATED ALWAYS AS (price * 0.19) STORED,
	shown     tstzrange
);
CREATE INDEX products_title ON products (lower(title));

CREATE TABLE orders (
	id        bigint NOT NULL,
	customer  bigint NOT NULL REFERENCES customers,
	state     status NOT NULL DEFAULT 'new',
	placed    date NOT NULL,
	note      text,
	PRIMARY KEY (id, placed)
) PARTITION BY RANGE (placed);
CREATE TABLE orders_2025 PARTITION OF orders FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE orders_2026 PARTITION OF orders FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE orders_rest PARTITION OF orders DEFAULT;
CREATE INDEX orders_customer ON orders (customer);

CREATE TABLE order_items (
	order_id  bigint NOT NULL,
	placed    date NOT NULL,
	line      smallint NOT NULL,
	product   integer NOT NULL REFERENCES products DEFERRABLE INITIALLY DEFERRED,
	amount    integer NOT NULL CHECK (amount > 0),
	PRIMARY KEY (order_id, line),
	FOREIGN KEY (order_id, placed) REFERENCES orders (id, placed)
);

CREATE TABLE rooms (
	room   integer,
	during tsrange,
	EXCLUDE USING gist (room WITH =, during WITH &&)
);
CREATE TABLE "Odd ""Names"" ü" ("sélect" text, "a b" integer);
CREATE TABLE nothing ();
CREATE TABLE empty (id integer PRIMARY KEY);
CREATE TABLE changes (at timestamptz DEFAULT now(), what text);

CREATE FUNCTION note_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO shop.changes (what) VALUES (TG_OP || ' of ' || TG_TABLE_NAME);
	RETURN NEW;
END $$;
CREATE TRIGGER products_changed AFTER UPDATE ON products FOR EACH ROW EXECUTE FUNCTION note_change();

CREATE VIEW open_orders AS SELECT o.id, c.name FROM orders o JOIN customers c ON c.id = o.customer WHERE o.state = 'new';

INSERT INTO customers (name, mail, home, tags, profile, photo)
SELECT 'Customer ' || i, 'customer' || i || '@example.com', ROW('Street ' || i % 500, 'City ' || i % 90, lpad((i % 99999)::text, 5, '0'))::address,
       ARRAY['t' || i % 7, 'Zoë''s "tag", with\comma'], jsonb_build_object('n', i, 'ok', i % 2 = 0), decode(md5(i::text), 'hex')
FROM generate_series(1, 1000 * {{scale}}) i;
INSERT INTO products (title, price, shown)
SELECT 'Product ' || i, (i % 1000) / 7.0, tstzrange('2025-01-01', NULL) FROM generate_series(1, 500) i;
INSERT INTO orders
SELECT i, 1 + i % (1000 * {{scale}}), (ARRAY['new','paid','sent','returned']::status[])[1 + i % 4], date '2024-07-01' + i % 900,
       CASE WHEN i % 10 = 0 THEN E'line one\nline\ttwo \\N' END
FROM generate_series(1, 8000 * {{scale}}) i;
INSERT INTO order_items
SELECT o.id, o.placed, l, 1 + (o.id * 7 + l) % 500, 1 + o.id % 9 FROM orders o, generate_series(1, 3) l;
INSERT INTO rooms VALUES (1, '[2026-01-01,2026-01-02)'), (1, '[2026-01-02,2026-01-03)');
INSERT INTO "Odd ""Names"" ü" VALUES (NULL, 1), ('', 2), (E'\u2028', NULL);
INSERT INTO nothing DEFAULT VALUES;
CREATE MATERIALIZED VIEW sales AS SELECT product, sum(amount) AS sold FROM order_items GROUP BY product;
CREATE UNIQUE INDEX sales_product ON sales (product);
SELECT setval('products_id_seq', 4711);
SELECT lo_from_bytea(424242, 'a large object');
ALTER TABLE customers ENABLE ROW LEVEL SECURITY;
CREATE POLICY everyone ON customers USING (true);
GRANT SELECT ON products TO PUBLIC;

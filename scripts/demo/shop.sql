-- The shop of `make demo`: what any application has, and nothing of msgq.

CREATE TABLE customer (
    id   int  PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    name text NOT NULL
);

CREATE TABLE stock (
    product text PRIMARY KEY,
    on_hand int  NOT NULL CHECK (on_hand >= 0)
);

CREATE TABLE orders (
    id       int  PRIMARY KEY GENERATED ALWAYS AS IDENTITY,
    customer int  NOT NULL REFERENCES customer,
    product  text NOT NULL REFERENCES stock,
    quantity int  NOT NULL CHECK (quantity > 0)
);

-- What the workers of the demo note down about themselves.
CREATE TABLE parcel (
    order_id int  NOT NULL,
    worker   text NOT NULL
);
CREATE TABLE worker_ready (worker text);
CREATE TABLE notebook (receipt uuid);

INSERT INTO customer (name) VALUES ('a bookshop'), ('a school');
INSERT INTO stock VALUES ('pencil', 1000), ('lamp', 10);

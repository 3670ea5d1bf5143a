-- Run once, on the first primary; replication carries it to the other server.
CREATE DATABASE foobar;
USE foobar;
CREATE TABLE users (user VARCHAR(64) PRIMARY KEY, salt CHAR(32) NOT NULL, hash CHAR(64) NOT NULL);
CREATE TABLE sessions (token CHAR(64) PRIMARY KEY, user VARCHAR(64) NOT NULL, made TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE notes (id BIGINT AUTO_INCREMENT PRIMARY KEY, user VARCHAR(64) NOT NULL, body TEXT NOT NULL, KEY (user, id));
-- The password is "secret".
INSERT INTO users VALUES ('alice', '00112233445566778899aabbccddeeff',
    '588372775fb38b5711b6f36b465e293dc7b793e008550ee8a10bb26a8e7f85b8');
-- The application, the balancers' checks (no rights: they only log in), replication, monitoring.
CREATE USER app@'10.0.2.%' IDENTIFIED BY 'change-me-app';
GRANT SELECT, INSERT, UPDATE, DELETE ON foobar.* TO app@'10.0.2.%';
CREATE USER lbd@'10.0.0.%' IDENTIFIED BY 'change-me-lbd';
CREATE USER replica@'10.0.3.%' IDENTIFIED BY 'change-me-replica';
GRANT REPLICATION SLAVE ON *.* TO replica@'10.0.3.%';
CREATE USER exporter@'127.0.0.1' IDENTIFIED BY 'change-me-exporter';
GRANT PROCESS, BINLOG MONITOR, SLAVE MONITOR, SELECT ON *.* TO exporter@'127.0.0.1';

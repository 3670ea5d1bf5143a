//! Reads the TOML configuration: schema, loading, validation, errors that name file, line, key, found and expected.

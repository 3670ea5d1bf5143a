//! Properties of the parser.

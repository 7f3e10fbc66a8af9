//! Tests of decoding objects.

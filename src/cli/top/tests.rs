//! What is shown of recorded counters, and errors.

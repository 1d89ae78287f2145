//! update/record

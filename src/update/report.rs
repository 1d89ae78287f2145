//! update/report

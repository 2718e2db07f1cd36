//! The socket through which a running tunnel is asked and told.

//! Health for load balancers and probes: `/healthz` and `/livez` of the proxy, and the health check node ports of
//! Services.

mod health_state;
mod healthz;
mod proxy_health;
mod service_health;

pub use healthz::router;
pub use proxy_health::Health;
pub use service_health::{HealthPortFailure, HealthPorts, OnHealthPortFailure};

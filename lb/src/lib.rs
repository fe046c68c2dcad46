//! The stateless load balancer: fronts, admission, placement, links to runners.

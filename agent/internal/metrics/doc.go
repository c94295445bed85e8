// Package metrics counts what the agent does and serves it in Prometheus' text
// format, on this host only.
//
// Labels take values from fixed lists: kinds, outcomes, steps, phases and codes.
// Names of connections, databases, agents, operations and people never are labels,
// so the number of series has a bound and a scrape tells nobody who did what.
// Every series is there from the start, so that its first event is an increase.
package metrics

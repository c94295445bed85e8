// Package posture judges how safe a mount, its connections and their servers are.
//
// Looking and judging are apart. Drivers and the engine gather facts
// ([PostgresFacts], [MySQLFacts], [RedisFacts], [Mount]); functions here turn
// facts into findings and findings into a score. They are pure: the same facts
// give the same findings in the same order.
//
// What could not be looked at is a finding of its own, never silently fine. Facts
// and findings hold names of users and objects, no secret and no row data.
package posture

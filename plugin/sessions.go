package plugin

import (
	"context"
	"time"
)

// leaveEvery is how often kept sessions are ended while an operation goes on. An
// operation may rename a database: PostgreSQL waits 5 s for the sessions in it to
// go and then refuses, and the agent may not end those of a superuser.
const leaveEvery = 500 * time.Millisecond

// leaveServers sees to it that no session is kept anywhere while any operation has
// logins: connections of other names may lead to the same database.
func (b *backend) leaveServers(ctx context.Context) {
	for range rounds(ctx, leaveEvery, nil) {
		if b.accounts.index.ofOperations() == 0 {
			continue
		}
		for _, known := range []*cache[connection]{b.connections, b.retired} {
			for _, c := range known.all() {
				c.leave()
			}
		}
	}
}

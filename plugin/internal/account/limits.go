package account

import "time"

// Timeouts of every call to every product. They are generous for a healthy server;
// what is dead is found out by them.
const (
	ConnectTimeout   = 5 * time.Second
	StatementTimeout = 10 * time.Second
	IdentityTimeout  = 2 * time.Second
)

// Sessions is how many sessions a driver opens at most when so many are asked for.
func Sessions(asked int) int {
	if asked <= 0 {
		return 4
	}
	return min(asked, 1000)
}

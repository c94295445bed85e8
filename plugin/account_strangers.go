package plugin

import (
	"sync"
	"time"
)

// A second Vault that was started from a copy of this one's storage, a snapshot that
// was restored elsewhere or a disk that was cloned, has this mount's id. Neither knows
// which logins the other makes: those that have no note of their own at the server
// (see accountNote) it ends as nobody's. It cannot tell them from logins that a
// restored backup of the server brought back, and of the two mistakes leaving a login
// that nobody ends is the worse one. So it ends them, and says what it sees.

// strangersKept is how long it is told after it was seen last.
const strangersKept = 24 * time.Hour

// strangers are logins with this mount's id that somebody else has made. The zero
// value is ready.
type strangers struct {
	mu sync.Mutex
	// answers is how often each server has told the sweeper which logins it has, and
	// seen what it has told of strangers; both by connection id.
	answers map[string]int
	seen    map[string]strangersSeen
}

type strangersSeen struct {
	count  int
	latest string // the name of one of the latest
	at     time.Time
}

// settled reports whether a login on a server that is not known must be somebody
// else's. What this mount has made has a record before it is made; and what was left
// by a process before this one, or by a restored snapshot, was found when the server
// answered first, or the second time if it was being made just then.
func (s *strangers) settled(server string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.answers[server] >= 2
}

// answered counts an answer, and reports whether it is the first.
func (s *strangers) answered(server string) (first bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answers == nil {
		s.answers = make(map[string]int)
	}
	s.answers[server]++
	return s.answers[server] == 1
}

// note adds logins that were found at a settled server.
func (s *strangers) note(server string, names []string, now time.Time) {
	if len(names) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil {
		s.seen = make(map[string]strangersSeen)
	}
	s.seen[server] = strangersSeen{count: s.seen[server].count + len(names), latest: names[len(names)-1], at: now}
}

// noted adds the servers that something is known of to ids.
func (s *strangers) noted(ids map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range s.answers {
		ids[id] = true
	}
	for id := range s.seen {
		ids[id] = true
	}
}

// forget forgets servers that no connection leads to any more.
func (s *strangers) forget(servers map[string]bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := range servers {
		delete(s.answers, id)
		delete(s.seen, id)
	}
}

// of is what is to be told of a server.
func (s *strangers) of(server string, now time.Time) (seen strangersSeen, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen, ok = s.seen[server]
	return seen, ok && now.Sub(seen.at) < strangersKept
}

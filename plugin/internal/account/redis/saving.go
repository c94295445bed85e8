package redis

import (
	"context"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

// place is where a server keeps its users over a restart.
type place int

const (
	unknown    place = iota
	nowhere          // in memory only
	aclFile          // ACL SAVE
	configFile       // CONFIG REWRITE
)

// lookAgain is after how long a server that could not save is asked again.
const lookAgain = 10 * time.Minute

// saving remembers where the server keeps its users. A server on which saving
// never worked (a read-only file, no right to it) is one that keeps them in
// memory, as with Vault's own engine; one on which it did must go on saving, or
// changes fail.
type saving struct {
	mu sync.Mutex
	at place
	// proven says that saving has worked.
	proven bool
	until  time.Time // when nowhere is looked at again
}

// place is unknown when the server must be asked.
func (s *saving) place(now time.Time) place {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.at == nowhere && now.After(s.until) {
		s.at = unknown
	}
	return s.at
}

func (s *saving) set(at place, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.at, s.proven, s.until = at, false, now.Add(lookAgain)
}

// done takes the outcome of saving at a place. An error is to be reported: the
// change was made but would not outlive the server.
func (s *saving) done(op string, at place, err error, now time.Time) error {
	if at == nowhere {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	answer := answerOf(err)
	switch {
	case err == nil:
		if s.at == at {
			s.proven = true
		}
		return nil
	case answer == "":
		return translate(op, err, true)
	case strings.Contains(answer, "not configured to use an ACL file"), strings.Contains(answer, "without a config file"):
		// It was a guess, or the server was started in another way meanwhile.
		if s.at = nowhere; s.proven {
			s.at = unknown
		}
		s.proven, s.until = false, now.Add(lookAgain)
		return nil
	case s.at == at && s.proven:
		code := wire.CodeEngine
		if strings.HasPrefix(answer, "NOPERM") {
			code = wire.CodePrivilege
		}
		return &account.Error{
			Op: op, Code: code, Ambiguous: true,
			Reason: "the change is in effect, but the server could not save it to its file and would forget it when it restarts; the server's log says why",
		}
	case s.at == at:
		s.at, s.until = nowhere, now.Add(lookAgain)
	}
	return nil
}

// probe is the question where the server keeps its users; it rides along with
// other commands.
type probe struct{ aclfile, server *redis.Cmd }

func askPlace(ctx context.Context, pipe redis.Pipeliner) probe {
	return probe{
		aclfile: pipe.Do(ctx, "CONFIG", "GET", "aclfile"),
		server:  pipe.Do(ctx, "INFO", "server"),
	}
}

// place reads the answers. A server that may not be asked is taken for one with an
// ACL file: the right to save that comes with the right to make users, that to
// rewrite the configuration with the right to ask.
func (p probe) place() place {
	pair, err := p.aclfile.StringSlice()
	if err != nil || len(pair) == 2 && pair[1] != "" {
		return aclFile
	}
	if info, err := p.server.Text(); err == nil && infoField(info, "config_file") != "" {
		return configFile
	}
	return nowhere
}

// save adds the command that saves; nil when there is nothing to do.
func (at place) save(ctx context.Context, pipe redis.Pipeliner) *redis.Cmd {
	switch at {
	case aclFile:
		return pipe.Do(ctx, "ACL", "SAVE")
	case configFile:
		return pipe.Do(ctx, "CONFIG", "REWRITE")
	default:
		return nil
	}
}

// infoField reads a line of INFO.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

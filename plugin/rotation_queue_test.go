package plugin

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/vault/sdk/logical"
	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/account"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv"
	"github.com/dbops-io/vault-plugin-secrets-dbops/testenv/race"
)

// claimed is how long after its time a rotation may be done, and lateness how long
// in this build: the race detector's is not the one that users run.
const (
	claimed  = 10 * time.Second
	lateness = claimed * race.Slowdown
)

// Two black holes among twenty connections: each role of the others is rotated
// within its period and ten seconds, again and again.
func TestRotation_ThousandRoles(t *testing.T) {
	// Not parallel: it measures time. Periods differ, as they do in life. The race
	// detector's build has fewer roles: sixty rotations a second are more than it can
	// do, and what is overloaded is late without a bound.
	const connections, perConnection, shortest, longest = 20, 50 / race.Slowdown, 10, 21
	const roles = connections * perConnection
	// What is claimed is claimed of servers that are not starved: the queue's own
	// process competes with whatever else runs, the server does not.
	p := testenv.Postgres(t, testenv.PostgresOptions{Weight: 16})
	statements := append(make([]string, 0, roles+1), `CREATE ROLE dbops_root LOGIN CREATEROLE PASSWORD '`+rootPassword+`'`)
	for i := range roles {
		statements = append(statements, fmt.Sprintf(`CREATE ROLE svc%d LOGIN ADMIN dbops_root`, i))
	}
	p.Exec("postgres", statements...)
	m := newMount(t, &logical.InmemStorage{})
	hole := testenv.BlackHole(t).String()
	for i := range connections {
		name := fmt.Sprintf("c%02d", i)
		if i < 2 {
			m.config(name, map[string]any{
				"connection_url": "postgresql://{{username}}:{{password}}@" + hole + "/x", "username": "u", "password": "planted-password", "allowed_roles": "*",
			})
		} else {
			m.configure(name, p)
		}
		for j := range perConnection {
			m.must(logical.CreateOperation, fmt.Sprintf("static-roles/r%d", i*perConnection+j), map[string]any{
				"db_name": name, "username": fmt.Sprintf("svc%d", i*perConnection+j), "rotation_period": shortest + j%(longest-shortest+1),
				"skip_import_rotation": true, "password": "initial",
			})
		}
	}
	t.Cleanup(func() {
		for line := range strings.Lines(m.log.String()) {
			if t.Failed() && strings.Contains(line, `"warn"`) && !strings.Contains(line, `"connection":"c00"`) && !strings.Contains(line, `"connection":"c01"`) {
				t.Log(line)
			}
		}
	})
	m.start()
	began := time.Now()
	var latest time.Duration
	waiting, rotated := true, map[string]time.Time{}
	for waiting || time.Since(began) < longest*time.Second+claimed {
		time.Sleep(250 * time.Millisecond)
		waiting = false
		for i := 2 * perConnection; i < roles; i++ {
			r, err := m.staticRoles.get(t.Context(), m.storage, fmt.Sprintf("r%d", i))
			require.NoError(t, err)
			// Next is from the one before until the rotation is stored.
			late := m.now().Sub(r.NextRotation)
			require.Less(t, late, lateness, r.Name)
			latest = max(latest, late)
			waiting = waiting || r.LastRotation.IsZero()
			rotated[r.Name+r.LastRotation.String()] = r.LastRotation
		}
	}
	t.Logf("%d rotations, the latest %v late", len(rotated)-(connections-2)*perConnection, latest.Round(time.Millisecond))
	require.True(t, staticWorks(m, p, fmt.Sprintf("r%d", roles-1), fmt.Sprintf("svc%d", roles-1)))
}

// staticWorks reports whether the password that is read of a role logs in. If a
// rotation comes in between, the one to try is the next that is read.
func staticWorks(m *engine, p *testenv.PostgresServer, role, username string) bool {
	m.t.Helper()
	for range 3 {
		password := m.staticPassword(role)
		if works(m.t, p, username, password) {
			return true
		}
		// The server has the new one a moment before storage has.
		for until := time.Now().Add(2 * time.Second * race.Slowdown); m.staticPassword(role) == password; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(until) {
				return false
			}
		}
	}
	return false
}

// Roles that become due at one moment, as after an outage, are worked off at once: in
// ten seconds or, on a machine so busy that it cannot be done in that, no slower than
// by asking for one after another.
func TestRotation_AllDueAtOnce(t *testing.T) {
	t.Parallel()
	const (
		roles = 200 / race.Slowdown
		asked = 10
	)
	m, p := withStatic(t)
	var statements []string
	for i := range roles + asked {
		statements = append(statements, fmt.Sprintf(`CREATE ROLE svc%d LOGIN ADMIN dbops_root`, i))
	}
	p.Exec("postgres", statements...)
	for i := range roles + asked {
		m.must(logical.CreateOperation, fmt.Sprintf("static-roles/r%d", i), map[string]any{
			"db_name": "prod", "username": fmt.Sprintf("svc%d", i), "rotation_period": "1h", "skip_import_rotation": true, "password": "initial",
		})
	}
	began := time.Now()
	for i := range asked {
		m.must(logical.UpdateOperation, fmt.Sprintf("rotate-role/r%d", roles+i), nil)
	}
	limit := max(lateness, roles*time.Since(began)/asked)
	m.start()
	m.clock.advance(time.Hour + time.Second)
	due := m.now()
	for i := range roles {
		name := fmt.Sprintf("r%d", i)
		require.Eventually(t, func() bool {
			r, err := m.staticRoles.get(t.Context(), m.storage, name)
			require.NoError(t, err)
			require.Less(t, m.now().Sub(due), limit, name)
			return !r.LastRotation.IsZero()
		}, limit, 10*time.Millisecond, name)
	}
	t.Logf("%d roles were rotated within %s of being due, allowed were %s", roles, m.now().Sub(due), limit)
}

// start is a time for tables.
var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return start.Add(time.Duration(seconds) * time.Second) }

func names(items []*rotationItem) []string {
	all := []string{}
	for _, item := range items {
		all = append(all, item.key.name)
	}
	return all
}

// What is longest due comes first, by itself as long as nothing waits long, and as
// much at once as a server that answers is given.
func TestTimetable_LongestDueFirst(t *testing.T) {
	t.Parallel()
	table := newTimetable()
	due := map[string]int{"c": 3, "a": 1, "d": 4, "b": 2, "e": 5, "f": 6, "later": 60}
	for name, seconds := range due {
		table.put(staticRoleKey(name), "db", at(seconds))
	}
	finish := func(now int, items []*rotationItem) (idle bool) {
		for _, item := range items {
			table.put(item.key, "db", at(100))
			idle = table.done(item, answered, at(now))
		}
		return idle
	}
	for _, step := range []struct {
		now  int
		want []string
		next int // 0: when one is done
		idle bool
	}{
		{0, nil, 1, true},
		{1, []string{"a"}, 0, true},       // a server that has not answered yet is tried by one
		{2, []string{"b"}, 4, true},       // c would wait for a second
		{5, []string{"c", "d"}, 7, false}, // c waits for two seconds, d for one
		{8, []string{"e", "f"}, 62, true},
		{60, []string{"later"}, 101, true},
	} {
		taken, next := table.take(at(step.now))
		require.ElementsMatch(t, step.want, names(taken), "at %d", step.now)
		want := at(step.next)
		if step.next == 0 {
			want = time.Time{}
		}
		require.Equal(t, want, next, "at %d", step.now)
		if len(taken) > 0 {
			require.Equal(t, step.idle, finish(step.now, taken), "at %d", step.now)
		}
	}
}

// A server that does not answer is asked by one rotation after a growing pause.
// It delays no other connection, and its roles are due as before when it is back.
func TestTimetable_DeadServer(t *testing.T) {
	t.Parallel()
	table := newTimetable()
	for i := range 10 {
		table.put(staticRoleKey(fmt.Sprintf("dead%d", i)), "dead", at(0))
	}
	table.put(staticRoleKey("live"), "live", at(5))
	now, tried := at(0), 0
	for now.Before(at(3600)) {
		taken, next := table.take(now)
		dead := 0
		for _, item := range taken {
			if item.connection == "live" {
				require.Equal(t, item.due, now)
				table.put(item.key, "live", now.Add(5*time.Second))
				table.done(item, answered, now)
				continue
			}
			dead++
			require.Equal(t, 1, table.lanes["dead"].working)
			table.done(item, unreachable, now)
		}
		tried += dead
		require.LessOrEqual(t, dead, 1)
		if len(taken) > 0 {
			continue
		}
		require.True(t, next.After(now))
		now = next
	}
	require.Greater(t, tried, 40, "about once a minute")
	require.Less(t, tried, 90)
	for _, item := range table.items {
		if item.connection == "dead" {
			require.Equal(t, at(0), item.due)
			require.Zero(t, item.attempts)
		}
	}
	table.put(staticRoleKey("live"), "", time.Time{})
	table.retryNow("dead", now)
	for _, width := range []int{1, 2, 4, 3} { // ten in all, never more than rotationsAtOnce
		taken, _ := table.take(now)
		require.Len(t, taken, width, "all that is due follows")
		for _, item := range taken {
			table.put(item.key, "dead", now.Add(time.Hour))
			table.done(item, answered, now)
		}
	}
}

// One that fails by itself waits longer each time and holds nobody up.
func TestTimetable_FailingRole(t *testing.T) {
	t.Parallel()
	table := newTimetable()
	table.put(staticRoleKey("bad"), "db", at(0))
	table.lane("db").width = rotationsAtOnce
	now := at(0)
	for attempt, longest := range []int{2, 3, 5, 10, 20, 39, 77, 154, 308, 615, 720, 720} {
		taken, _ := table.take(now)
		require.Equal(t, []string{"bad"}, names(taken), attempt)
		table.done(taken[0], unknownOutcome, now)
		_, next := table.take(now)
		require.True(t, next.After(now.Add(799*time.Millisecond)), attempt)
		require.True(t, next.Before(now.Add(time.Duration(longest)*time.Second)), "%d: %v", attempt, next.Sub(now))
		now = next
	}
	table.put(staticRoleKey("good"), "db", now.Add(-time.Minute))
	now = now.Add(patience)
	taken, _ := table.take(now)
	require.Equal(t, []string{"good", "bad"}, names(taken))

	// What is changed while it is worked on counts.
	table.put(staticRoleKey("bad"), "db", time.Time{})
	table.put(staticRoleKey("good"), "other", at(9999))
	table.done(taken[1], unknownOutcome, now)
	table.done(taken[0], answered, now)
	require.Len(t, table.items, 1)
	require.NotContains(t, table.lanes, "db")
	table.put(staticRoleKey("good"), "other", at(7))
	table.put(staticRoleKey("good"), "third", at(8))
	taken, _ = table.take(at(9))
	require.Len(t, taken, 1)
	require.Equal(t, "third", taken[0].at)
	require.NotContains(t, table.lanes, "other")
}

// What was begun stays due when its role or connection is written, and when the clock
// is set: the server may have the new credential already, which nobody is told.
func TestRotation_BegunStaysDue(t *testing.T) {
	t.Parallel()
	m := newMount(t, &logical.InmemStorage{})
	for _, name := range []string{"of-role", "of-root"} {
		m.must(logical.CreateOperation, "config/"+name, map[string]any{
			"plugin_name": postgresPluginName, "connection_url": "postgresql://{{username}}:{{password}}@127.0.0.1:1/x",
			"username": "dbops_root", "password": "planted-password", "allowed_roles": "*", "verify_connection": false,
		})
	}
	m.must(logical.CreateOperation, "static-roles/app", map[string]any{
		"db_name": "of-role", "username": "svc", "rotation_period": "24h", "skip_import_rotation": true, "password": "planted-present",
	})
	begun := []rotationKey{staticRoleKey("app"), rootKey("of-root")}
	for what, change := range map[string]func(){
		"written": func() {
			m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"rotation_period": "12h"})
			m.must(logical.UpdateOperation, "config/of-root", map[string]any{"max_open_connections": 3})
		},
		"the clock is set": func() { m.rotations.lookAgain(t.Context(), m.storage) },
	} {
		m.rotations.retry(begun[0], "of-role", errors.New("its answer was lost"))
		m.rotations.retry(begun[1], "of-root", &account.Error{Code: wire.CodeUnavailable})
		change()
		taken, _ := m.rotations.take(m.rotations.now().Add(2 * shortestPause))
		var keys []rotationKey
		for _, item := range taken {
			keys = append(keys, item.key)
			m.rotations.change(func(table *timetable) { table.done(item, unreachable, m.rotations.now()) })
			m.rotations.retryNow(item.connection)
		}
		require.ElementsMatch(t, begun, keys, what)
	}
	// The caller says what the password is: nothing that was begun counts any more.
	m.must(logical.UpdateOperation, "static-roles/app", map[string]any{"password": "planted-other"})
	taken, _ := m.rotations.take(m.rotations.now().Add(2 * shortestPause))
	require.Len(t, taken, 1)
	require.Equal(t, begun[1], taken[0].key)
}

package approval_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/internal/approval"
	"github.com/dbops-io/vault-plugin-secrets-dbops/plugin/wire"
)

var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// given is an approval by an entity of the plan "d", so many minutes ago, with the
// logins it had.
func given(entity string, minutesAgo int, aliases ...string) approval.Given {
	return approval.Given{
		Approval: wire.Approval{User: wire.User{EntityID: entity, Name: entity}, Time: noon.Add(-time.Duration(minutesAgo) * time.Minute), PlanDigest: "d"},
		Aliases:  aliases,
	}
}

func need(count int, ttl time.Duration, groups ...string) wire.ApprovalNeed {
	return wire.ApprovalNeed{Policy: "p", Count: count, Groups: groups, TTL: ttl}
}

func member(groups ...string) approval.Person { return approval.Person{Groups: groups} }

// Who counts, as a table: missing people per need, and by whom.
func TestStatus(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		needs   []wire.ApprovalNeed
		given   []approval.Given
		people  map[string]approval.Person
		aliases []string // of the requester
		now     time.Time
		missing []int
		by      string
	}{
		"nothing asked":             {nil, nil, nil, nil, noon, []int{}, "[]"},
		"nobody approved":           {[]wire.ApprovalNeed{need(2, 0, "g")}, nil, nil, nil, noon, []int{2}, "[[]]"},
		"one of two":                {[]wire.ApprovalNeed{need(2, 0, "g")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{1}, "[[a]]"},
		"two of two":                {[]wire.ApprovalNeed{need(2, 0, "g")}, []approval.Given{given("b", 1), given("a", 2)}, map[string]approval.Person{"a": member("g"), "b": member("x", "g")}, nil, noon, []int{0}, "[[a b]]"},
		"more than needed":          {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1), given("b", 1)}, map[string]approval.Person{"a": member("g"), "b": member("g")}, nil, noon, []int{0}, "[[a b]]"},
		"one for two needs":         {[]wire.ApprovalNeed{need(1, 0, "g"), need(1, 0, "h")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": member("g", "h")}, nil, noon, []int{0, 0}, "[[a] [a]]"},
		"one for one of two needs":  {[]wire.ApprovalNeed{need(1, 0, "g"), need(1, 0, "h")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{0, 1}, "[[a] []]"},
		"one of several groups":     {[]wire.ApprovalNeed{need(1, 0, "g", "h")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": member("h")}, nil, noon, []int{0}, "[[a]]"},
		"no member":                 {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": member("h")}, nil, noon, []int{1}, "[[]]"},
		"gone or disabled":          {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1)}, nil, nil, noon, []int{1}, "[[]]"},
		"another plan":              {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{{Approval: wire.Approval{User: wire.User{EntityID: "a"}, Time: noon, PlanDigest: "older"}}}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{1}, "[[]]"},
		"just not expired":          {[]wire.ApprovalNeed{need(1, time.Hour, "g")}, []approval.Given{given("a", 59)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{0}, "[[a]]"},
		"expired":                   {[]wire.ApprovalNeed{need(1, time.Hour, "g")}, []approval.Given{given("a", 60)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{1}, "[[]]"},
		"a day by default":          {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 24*60-1)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{0}, "[[a]]"},
		"no longer than a day":      {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 24*60)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{1}, "[[]]"},
		"each need has its own ttl": {[]wire.ApprovalNeed{need(1, time.Hour, "g"), need(1, 0, "g")}, []approval.Given{given("a", 60)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{1, 0}, "[[] [a]]"},
		"the clock went back": {
			[]wire.ApprovalNeed{need(2, time.Hour, "g")},
			[]approval.Given{given("a", 90), given("b", 0)},
			map[string]approval.Person{"a": member("g"), "b": member("g")},
			nil, noon.Add(-80 * time.Minute),
			[]int{1},
			"[[b]]",
		},
		"the requester":                    {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("me", 1)}, map[string]approval.Person{"me": member("g")}, nil, noon, []int{1}, "[[]]"},
		"a login the requester has":        {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": {Groups: []string{"g"}, Aliases: []string{"ldap/me"}}, "me": {Aliases: []string{"ldap/me"}}}, nil, noon, []int{1}, "[[]]"},
		"a login the requester had":        {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": {Groups: []string{"g"}, Aliases: []string{"ldap/me"}}}, []string{"ldap/me"}, noon, []int{1}, "[[]]"},
		"approved by a login moved since":  {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1, "ldap/me")}, map[string]approval.Person{"a": member("g")}, []string{"ldap/me"}, noon, []int{1}, "[[]]"},
		"twice one entity":                 {[]wire.ApprovalNeed{need(2, 0, "g")}, []approval.Given{given("a", 1), given("a", 2)}, map[string]approval.Person{"a": member("g")}, nil, noon, []int{1}, "[[a]]"},
		"two entities of one login":        {[]wire.ApprovalNeed{need(2, 0, "g")}, []approval.Given{given("a", 2, "ldap/x"), given("b", 1, "ldap/x")}, map[string]approval.Person{"a": member("g"), "b": member("g")}, nil, noon, []int{1}, "[[a]]"},
		"two entities of one human apart":  {[]wire.ApprovalNeed{need(2, 0, "g")}, []approval.Given{given("a", 2, "ldap/x"), given("b", 1, "oidc/x")}, map[string]approval.Person{"a": member("g"), "b": member("g")}, nil, noon, []int{0}, "[[a b]]"},
		"merged: the older one has gone":   {[]wire.ApprovalNeed{need(2, 0, "g")}, []approval.Given{given("a", 2, "ldap/x"), given("b", 1, "ldap/x")}, map[string]approval.Person{"b": member("g")}, nil, noon, []int{1}, "[[b]]"},
		"not the requester's other groups": {[]wire.ApprovalNeed{need(1, 0, "g")}, []approval.Given{given("a", 1)}, map[string]approval.Person{"a": member(), "me": member("g")}, nil, noon, []int{1}, "[[]]"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all := approval.Status(approval.Question{
				Needs: c.needs, PlanDigest: "d", Requester: "me", RequesterAliases: c.aliases, Given: c.given, People: c.people, Now: c.now,
			})
			missing, by := []int{}, [][]string{}
			for _, s := range all {
				missing, by = append(missing, s.Missing), append(by, s.By)
			}
			require.Equal(t, c.missing, missing)
			require.Equal(t, c.by, fmt.Sprint(by))
			require.Equal(t, !slices.ContainsFunc(missing, func(n int) bool { return n > 0 }), approval.Met(all))
			require.Len(t, approval.Missing(all), len(missing)-count(missing, 0))
		})
	}
}

func count(all []int, value int) (n int) {
	for _, v := range all {
		if v == value {
			n++
		}
	}
	return n
}

// A need says until when it is met: as long as the oldest approval that counts.
func TestStatus_Until(t *testing.T) {
	t.Parallel()
	q := approval.Question{
		Needs: []wire.ApprovalNeed{need(2, time.Hour, "g")}, PlanDigest: "d", Requester: "me", Now: noon,
		Given:  []approval.Given{given("a", 10), given("b", 20), given("old", 70)},
		People: map[string]approval.Person{"a": member("g"), "b": member("g"), "old": member("g")},
	}
	until := approval.Status(q)[0].Until
	require.Equal(t, noon.Add(40*time.Minute), until)
	q.Now = until.Add(-time.Nanosecond)
	require.True(t, approval.Met(approval.Status(q)))
	q.Now = until
	require.False(t, approval.Met(approval.Status(q)))
}

// Each approval that counts for nothing says why; for several needs, why the one it came
// closest to.
func TestVerdicts(t *testing.T) {
	t.Parallel()
	older := given("older-plan", 1)
	older.PlanDigest = "older"
	q := approval.Question{
		Needs: []wire.ApprovalNeed{need(1, time.Hour, "g"), need(1, time.Hour, "h")}, PlanDigest: "d", Requester: "me", RequesterAliases: []string{"ldap/me"}, Now: noon,
		Given: []approval.Given{
			given("same-person", 1, "ldap/x"), given("first", 2, "ldap/x"), older, given("gone", 1), given("alias-of-requester", 1, "ldap/me"),
			given("me", 1), given("left", 1), given("expired", 60), given("of-the-other-group", 1),
		},
		People: map[string]approval.Person{
			"same-person": member("g"), "first": member("g"), "older-plan": member("g"), "alias-of-requester": member("g"), "me": member("g", "h"),
			"left": member("x"), "expired": member("g"), "of-the-other-group": member("h"),
		},
	}
	require.Equal(t, []wire.NotCounted{
		wire.NotCountedTwice, "", wire.NotCountedPlan, wire.NotCountedNobody, wire.NotCountedRequester, wire.NotCountedRequester,
		wire.NotCountedNoMember, wire.NotCountedExpired, "",
	}, approval.Verdicts(q))
	q.Needs = nil
	require.Len(t, approval.Verdicts(q), len(q.Given))
}

// How long an operation may wait: a day, or longer where approvals hold longer.
func TestWait(t *testing.T) {
	t.Parallel()
	require.Equal(t, 24*time.Hour, approval.Wait([]wire.ApprovalNeed{need(1, time.Hour, "g")}))
	require.Equal(t, 72*time.Hour, approval.Wait([]wire.ApprovalNeed{need(1, time.Hour, "g"), need(1, 72*time.Hour, "g")}))
}

// Whatever is drawn: never more people than entities that are not the requester,
// and nobody twice.
func FuzzStatus(f *testing.F) {
	f.Add([]byte("who approves what is drawn from these bytes"))
	f.Add([]byte{0, 255, 1, 254, 2, 253, 3, 252, 4, 251, 5, 250})
	f.Fuzz(func(t *testing.T, content []byte) {
		draw := func(below int) int {
			if len(content) == 0 {
				return 0
			}
			b := content[0]
			content = content[1:]
			return int(b) % below
		}
		entities := []string{"me", "a", "b", "c"}
		logins := []string{"l/1", "l/2", "l/3", "l/4"}
		q := approval.Question{PlanDigest: "d", Requester: "me", Now: noon, People: map[string]approval.Person{}}
		for range 1 + draw(2) {
			q.Needs = append(q.Needs, need(1+draw(3), time.Duration(draw(3))*time.Hour, []string{"g", "h"}[draw(2)]))
		}
		for _, entity := range entities {
			if draw(4) > 0 {
				q.People[entity] = approval.Person{Groups: []string{"g", "h"}[:draw(3)], Aliases: logins[:draw(3)]}
			}
		}
		for range draw(6) {
			g := given(entities[draw(4)], draw(200), logins[draw(4)])
			if draw(5) == 0 {
				g.PlanDigest = "older"
			}
			q.Given = append(q.Given, g)
		}
		all := approval.Status(q)
		for i, s := range all {
			if len(s.By) > 3 || slices.Contains(s.By, "me") {
				t.Fatalf("%v counted", s.By)
			}
			names := slices.Clone(s.By)
			slices.Sort(names)
			if len(slices.Compact(names)) != len(s.By) {
				t.Fatalf("%v counted", s.By)
			}
			if s.Missing != max(0, q.Needs[i].Count-len(s.By)) {
				t.Fatalf("%d missing with %v", s.Missing, s.By)
			}
		}
	})
}

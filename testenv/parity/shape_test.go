package parity_test

import (
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// difference is one thing in which the answers to a row differ.
type difference struct {
	row          string
	where        string // "status", "body", or a path in the answer such as data.ttl
	theirs, ours string // the class of status, the JSON type, or absent
	byValue      bool   // theirs and ours are values
}

func (d difference) String() string {
	return fmt.Sprintf("%-60q %-30s built-in: %-8s ours: %s", d.row, d.where, d.theirs, d.ours)
}

const absent = "absent"

// compare lists in which the two answers to a row differ.
func compare(r row, theirs, ours answer) []difference {
	var found []difference
	add := func(where, theirs, ours string) {
		if theirs != ours {
			found = append(found, difference{row: r.name, where: where, theirs: theirs, ours: ours})
		}
	}
	add("status", theirs.class(), ours.class())
	if theirs.class() != ours.class() {
		return found // what follows from it is no difference of its own
	}
	if (theirs.body == nil) != (ours.body == nil) {
		add("body", theirs.kind(), ours.kind())
		return found
	}
	left, right := map[string]string{}, map[string]string{}
	shape(theirs.body, "", left)
	shape(ours.body, "", right)
	paths := slices.Sorted(maps.Keys(left))
	for path := range right {
		if _, both := left[path]; !both {
			paths = append(paths, path)
		}
	}
	for _, path := range paths {
		a, inTheirs := left[path]
		b, inOurs := right[path]
		switch {
		case !inTheirs:
			a = absent
		case !inOurs:
			b = absent
		}
		// The elements of lists can be compared where both have some.
		if strings.HasSuffix(path, "[]") && (!inTheirs || !inOurs || a == "" || b == "") {
			continue
		}
		// Below what only one of them has, all is missing in the other.
		if parent := path[:max(0, strings.LastIndexByte(path, '.'))]; parent != "" && left[parent] != right[parent] {
			continue
		}
		add(path, a, b)
	}
	for _, path := range r.same {
		if a, b := theirs.at(path), ours.at(path); !reflect.DeepEqual(a, b) {
			found = append(found, difference{row: r.name, where: path, theirs: fmt.Sprint(a), ours: fmt.Sprint(b), byValue: true})
		}
	}
	return found
}

// class is what clients decide by: the first digit of the status; 404, which a
// read takes for "there is none" and Terraform for "deleted", by itself.
func (a answer) class() string {
	switch a.status {
	case 0:
		return absent
	case http.StatusNotFound:
		return "404"
	}
	return fmt.Sprintf("%dxx", a.status/100)
}

// kind is the JSON type of the whole answer.
func (a answer) kind() string {
	if a.body == nil {
		return absent
	}
	return typeOf(a.body)
}

// shape notes the JSON type of a value and of all in it, by path.
func shape(value any, path string, types map[string]string) {
	if path != "" {
		types[path] = typeOf(value)
	}
	switch value := value.(type) {
	case map[string]any:
		for key, child := range value {
			shape(child, strings.TrimPrefix(path+"."+key, "."), types)
		}
	case []any:
		var kinds []string
		for _, child := range value {
			kinds = append(kinds, typeOf(child))
		}
		slices.Sort(kinds)
		types[path+"[]"] = strings.Join(slices.Compact(kinds), "|")
		if path == "errors" && len(value) == 0 {
			// vault/api takes a 404 without errors for an empty answer.
			types[path] = "none"
		}
	}
}

func typeOf(value any) string {
	switch value.(type) {
	case nil:
		return "null"
	case bool:
		return "bool"
	case float64:
		return "number"
	case string:
		return "string"
	case []any:
		return "array"
	case map[string]any:
		return "object"
	default:
		return fmt.Sprintf("%T", value)
	}
}

// The comparison finds what it is there to find.
func TestCompare(t *testing.T) {
	t.Parallel()
	object := func(pairs ...any) map[string]any {
		m := map[string]any{}
		for i := 0; i < len(pairs); i += 2 {
			m[pairs[i].(string)] = pairs[i+1]
		}
		return m
	}
	theirs := answer{status: 200, body: object("data", object(
		"n", 1.0, "list", []any{"a"}, "gone", object("x", true), "empty", []any{}))}
	require.Empty(t, compare(row{}, theirs, theirs))
	require.Equal(t, []difference{{where: "body", theirs: "object", ours: absent}},
		compare(row{}, theirs, answer{status: 204}))
	ours := answer{status: 200, body: object("data", object(
		"n", "1", "list", []any{1.0}, "more", nil, "empty", []any{"a"}))}
	require.ElementsMatch(t, []difference{
		{where: "data.n", theirs: "number", ours: "string"},
		{where: "data.list[]", theirs: "string", ours: "number"},
		{where: "data.gone", theirs: "object", ours: absent},
		{where: "data.more", theirs: absent, ours: "null"},
	}, compare(row{}, theirs, ours))
	require.Equal(t, []difference{{where: "status", theirs: "5xx", ours: "4xx"}},
		compare(row{}, answer{status: 500}, answer{status: 403}))
	require.Equal(t, []difference{{where: "status", theirs: "4xx", ours: "404"}},
		compare(row{}, answer{status: 400}, answer{status: 404}))
	missing := answer{status: 404, body: object("errors", []any{})}
	unknown := answer{status: 404, body: object("errors", []any{"no handler"})}
	require.Equal(t, []difference{{where: "errors", theirs: "none", ours: "array"}}, compare(row{}, missing, unknown))
	require.Equal(t, []difference{{where: "n", theirs: "1", ours: "2", byValue: true}}, compare(row{same: []string{"n"}},
		answer{status: 200, body: object("n", 1.0)}, answer{status: 200, body: object("n", 2.0)}))
}

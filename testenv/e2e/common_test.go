package e2e

import "errors"

var errNothing = errors.New("nothing yet")

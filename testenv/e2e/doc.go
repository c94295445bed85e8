// Package e2e holds the black-box tests: the built plugin in a real Vault, the
// built agent, the built command line, real databases and Docker. What a part
// says about itself is not believed; the databases, the host and the audit file
// are asked.
package e2e
